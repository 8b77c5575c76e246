"""How many bytes inputs take: those of real files that were really compressed."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mllm_sched.pipeline import media

AUDIO_S, VIDEO_S, VIDEO_FPS, SEEN_FPS = 10.0, 2.0, 25.0, 2.0
RESIZED, RESIZED_SIDE = "raw RGB, as the encoder sees it", 336  # CLIP's tower in LLaVA


@lru_cache(maxsize=1)
def samples() -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.uint8]]:
    """A 1080p photograph, 10 s of audio, 2 s of 720p video."""
    video = media.panned_video("china", VIDEO_S, VIDEO_FPS)
    return media.photograph("china"), media.speech_like(AUDIO_S), video


def seen_frames(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames that a model looks at: two a second, four in all."""
    step = VIDEO_FPS / SEEN_FPS
    return video[[round(step * number) for number in range(round(VIDEO_S * SEEN_FPS))]]


def input_sizes() -> pd.DataFrame:
    """Bytes of every form of the inputs.

    Returns
    -------
    Columns ``item``, ``form``, ``compressed``, ``bytes``, and ``psnr_db``: how near what is
    decoded is to the input, for what is compressed with loss and can be looked at.
    """
    image, audio, video = samples()
    flower, seen = media.photograph("flower"), seen_frames(video)
    resized = media.photograph("china", RESIZED_SIDE, RESIZED_SIDE)
    frames = [media.jpeg(frame) for frame in seen]
    stream = media.h264(video, VIDEO_FPS)
    rows = [
        ("image", "raw RGB", False, image.nbytes, np.nan),
        ("image", RESIZED, False, resized.nbytes, np.nan),
        _jpeg_row("JPEG, quality 95", image, 95),
        _jpeg_row("JPEG, quality 75", image, 75),
        _jpeg_row("JPEG, quality 75, flower", flower, 75),
        ("audio", "PCM, 16 bit", False, audio.nbytes, np.nan),
        ("audio", "FLAC", True, len(media.flac(audio)), np.nan),
        ("audio", "Opus, 24 kbit/s", True, len(media.opus(audio)), np.nan),
        ("video", "raw RGB, all frames", False, video.nbytes, np.nan),
        ("video", "raw RGB, frames seen", False, seen.nbytes, np.nan),
        _row("video", "JPEG, frames seen", b"".join(frames), np.stack(_shown(frames)), seen),
        _row("video", "H.264, 4 Mbit/s", stream, media.decoded(stream), video),
    ]
    return pd.DataFrame(rows, columns=["item", "form", "compressed", "bytes", "psnr_db"])


def _shown(files: list[bytes]) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def _jpeg_row(form: str, image: NDArray, quality: int) -> tuple[object, ...]:
    file = media.jpeg(image, quality)
    return _row("image", form, file, _shown([file])[0], image)


def _row(
    item: str, form: str, file: bytes, shown: NDArray, original: NDArray
) -> tuple[object, ...]:
    return item, form, True, len(file), psnr_db(shown, original)


def psnr_db(shown: NDArray, original: NDArray) -> float:
    """Peak signal-to-noise ratio of 8-bit pixels, to a tenth of a decibel; infinite if equal.

    Examples
    --------
    >>> psnr_db(np.array([0, 255]), np.array([0, 0]))
    3.0
    """
    error = sum(
        float(np.mean((one.astype(float) - other.astype(float)) ** 2))
        for one, other in zip(shown, original, strict=True)
    ) / len(original)
    return float("inf") if error == 0 else round(10 * float(np.log10(255**2 / error)), 1)
