"""Images, sound and video: test inputs, codecs, and files.

The photographs ship with scikit-learn; all randomness is seeded.
"""

from __future__ import annotations

import io
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.signal import lfilter

from mllm_sched.pipeline.requests import AUDIO_HZ, Item

SENSOR_NOISE = 2.0  # standard deviation of a pixel, of 255: what a camera adds in daylight


@lru_cache(maxsize=4)
def _native(name: str) -> NDArray[np.uint8]:
    from sklearn.datasets import load_sample_image

    image: NDArray[np.uint8] = np.ascontiguousarray(load_sample_image(f"{name}.jpg"))
    return image


def photograph(name: str = "china", height: int = 1080, width: int = 1920) -> NDArray[np.uint8]:
    """The photograph ``china`` or ``flower``, cropped and resized: uint8 (height, width, 3).

    The originals have 427 x 640 pixels. Enlarged, they are smoother than a camera's picture and
    compress better; sensor noise is added to make up for some of it.
    """
    image = _native(name)
    wide = min(image.shape[1], int(image.shape[0] * width / height))
    high = min(image.shape[0], int(image.shape[1] * height / width))
    top, left = (image.shape[0] - high) // 2, (image.shape[1] - wide) // 2
    crop = Image.fromarray(image[top : top + high, left : left + wide])
    resized = np.asarray(crop.resize((width, height), Image.Resampling.LANCZOS))
    if high >= height:
        return resized.copy()
    noise = np.random.default_rng(0).normal(0, SENSOR_NOISE, resized.shape)
    return np.clip(np.rint(resized + noise), 0, 255).astype(np.uint8)


def panned_video(
    name: str = "china",
    seconds: float = 10.0,
    fps: float = 25.0,
    height: int = 720,
    width: int = 1280,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """A camera that pans over a photograph, with noise: uint8 (frames, height, width, 3)."""
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
    """Sound with the pitch, formants and pauses of speech: int16 (samples,) at 16 kHz.

    Pulses of a varying pitch, or noise, go through three resonances that change four times a
    second, as syllables do; every sixth syllable is a pause.
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


def jpeg(image: NDArray[np.uint8], quality: int = 75) -> bytes:
    """An image of shape (height, width, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def h264(frames: NDArray[np.uint8], fps: float, bit_rate: int = 4_000_000) -> bytes:
    """Frames of shape (frames, height, width, 3) as H.264 in MP4, at a mean bit rate per second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", bit_rate
        stream.options = {"preset": "veryfast", "threads": "1"}  # the same bytes on any machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def opus(samples: NDArray[np.int16], bit_rate: int = 24_000) -> bytes:
    """Samples at 16 kHz as Opus in Ogg."""
    return _sound(samples, "libopus", "ogg", bit_rate)


def flac(samples: NDArray[np.int16]) -> bytes:
    """Samples at 16 kHz as FLAC, without loss."""
    return _sound(samples, "flac", "flac", None)


def _sound(
    samples: NDArray[np.int16], codec: str, container_format: str, bit_rate: int | None
) -> bytes:
    buffer, rate = io.BytesIO(), int(AUDIO_HZ)
    with av.open(buffer, "w", format=container_format) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.layout, stream.format = "mono", "s16"
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.generic]:
    """Frames (frames, height, width, 3) or samples (samples,) of a compressed file."""
    with av.open(io.BytesIO(data), "r") as container:
        return _decoded(container)


def _decoded(container: av.container.InputContainer) -> NDArray[np.generic]:
    if container.streams.video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    to_16_khz = av.AudioResampler("s16", "mono", int(AUDIO_HZ))
    frames = [
        part.to_ndarray()[0]
        for frame in [*container.decode(audio=0), None]
        for part in to_16_khz.resample(frame)
    ]
    return np.concatenate(frames)


def read_image(path: Path) -> Item:
    """A picture in any format that Pillow reads; ValueError if it is none."""
    try:
        with Image.open(path) as image:
            return Item("image", np.asarray(image.convert("RGB")).copy())
    except UnidentifiedImageError:
        raise ValueError(f"{path}: no picture that can be read") from None


def read_audio(path: Path) -> Item:
    """Sound in any format that FFmpeg reads, at 16 kHz and in mono; ValueError if it is none."""
    with _opened(path) as container:
        samples = _decoded(container)
    if samples.ndim != 1:
        raise ValueError(f"{path}: a video; give it as one")
    return Item("audio", samples)


def read_video(path: Path, fps: float) -> Item:
    """``fps`` frames a second of a video in any format that FFmpeg reads; ValueError if none."""
    with _opened(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path}: no video in it")
        rate = float(container.streams.video[0].average_rate or 0)
        if not 0 < fps <= rate:
            raise ValueError(f"fps={fps:g}: {path} has {rate:g} frames a second; take fewer")
        frames = _decoded(container)
    kept = np.floor(np.arange(0, len(frames), rate / fps)).astype(int)
    return Item("video", frames[kept], fps)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path), "r")
    except av.error.InvalidDataError:
        raise ValueError(f"{path}: nothing that FFmpeg can read") from None
