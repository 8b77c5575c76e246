"""Inputs to try a pipeline with: two real photographs, a video panned over them, synthetic speech.

The photographs ship with scikit-learn. Nothing is downloaded, and every draw is seeded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import lfilter

from mllm_sched.pipeline.requests import AUDIO_HZ

PHOTOGRAPHS = ("china", "flower")
SENSOR_NOISE = 2.0  # standard deviation of a pixel, of 255: what a camera adds in daylight


@lru_cache(maxsize=4)
def _native(name: str) -> NDArray[np.uint8]:
    if name not in PHOTOGRAPHS:
        raise ValueError(f"photograph {name!r}: expected one of {', '.join(PHOTOGRAPHS)}")
    from sklearn.datasets import load_sample_image

    image: NDArray[np.uint8] = np.ascontiguousarray(load_sample_image(f"{name}.jpg"))
    return image


def photograph(name: str = "china", height: int = 1080, width: int = 1920) -> NDArray[np.uint8]:
    """A photograph, cropped to the shape asked for and resized.

    The originals have 427 x 640 pixels. Enlarged, they are smoother than a camera's picture of
    that size, and codecs make them smaller; sensor noise is added to make up for some of it.

    Returns
    -------
    uint8 of shape (height, width, 3).

    Examples
    --------
    >>> photograph("flower", 90, 160).shape
    (90, 160, 3)
    """
    image = _native(name)
    wide = min(image.shape[1], int(image.shape[0] * width / height))
    high = min(image.shape[0], int(image.shape[1] * height / width))
    top, left = (image.shape[0] - high) // 2, (image.shape[1] - wide) // 2
    crop = Image.fromarray(image[top : top + high, left : left + wide])
    resized = np.asarray(crop.resize((width, height), Image.Resampling.LANCZOS))
    if high >= height:
        return resized.copy()
    return _with_noise(resized, np.random.default_rng(0))


def panned_video(
    name: str = "china",
    seconds: float = 10.0,
    fps: float = 25.0,
    height: int = 720,
    width: int = 1280,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """A camera that pans over a photograph, with sensor noise drawn for each frame.

    Returns
    -------
    uint8 of shape (frames, height, width, 3).
    """
    frames, rng = max(1, round(seconds * fps)), np.random.default_rng(seed)
    scene = photograph(name, height + height // 4, width + width // 4)
    video = np.empty((frames, height, width, 3), np.uint8)
    grain = rng.normal(0, SENSOR_NOISE, scene.shape)  # drawn once, and shifted for each frame
    for index in range(frames):
        angle = 2 * np.pi * index / fps / 10.0  # once around in ten seconds
        top = round((1 - np.cos(angle)) / 2 * (scene.shape[0] - height))
        left = round((1 + np.sin(angle)) / 2 * (scene.shape[1] - width))
        down, right = (rng.integers(0, extra // 5) for extra in scene.shape[:2])
        shown = scene[top : top + height, left : left + width]
        noise = grain[down : down + height, right : right + width]
        video[index] = np.clip(np.rint(shown + noise), 0, 255).astype(np.uint8)
    return video


def speech_like(seconds: float = 10.0, seed: int = 0) -> NDArray[np.int16]:
    """Sound with the pitch, formants and pauses of speech, and no words.

    Pulses of a wandering pitch, or noise, go through three resonances that change four times a
    second, as syllables do; every sixth syllable is a pause.

    Returns
    -------
    int16 of shape (samples,), 16000 a second.
    """
    rng, hz = np.random.default_rng(seed), AUDIO_HZ
    pieces: list[NDArray[np.float64]] = []
    while sum(map(len, pieces)) < seconds * hz:
        length = int(hz * rng.uniform(0.15, 0.35))
        if rng.random() < 1 / 6:
            pieces.append(rng.normal(0, 1e-3, length))
            continue
        time_s = np.arange(length) / hz
        pitch_hz = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time_s))
        pulses = np.diff(np.floor(np.cumsum(pitch_hz) / hz), prepend=0.0)
        sound = pulses if rng.random() < 0.75 else rng.normal(0, 0.1, length)
        for centre, width in (
            (rng.uniform(250, 850), 80),
            (rng.uniform(850, 2500), 120),
            (2700, 200),
        ):
            radius = np.exp(-np.pi * width / hz)
            poles = [1, -2 * radius * np.cos(2 * np.pi * centre / hz), radius**2]
            sound = lfilter([1 - radius], poles, sound)
        sound = sound * np.hanning(length) ** 0.3
        pieces.append(sound / (np.abs(sound).max() + 1e-9) * rng.uniform(0.3, 0.9))
    samples = np.concatenate(pieces)[: int(seconds * hz)]
    return (samples * 32767).astype(np.int16)


def _with_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    noise = rng.normal(0, SENSOR_NOISE, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
