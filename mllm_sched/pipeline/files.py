"""Images, sound and video from files, as the raw items of a request."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from mllm_sched.pipeline.codecs import decoded
from mllm_sched.pipeline.requests import Item


def read_image(path: Path) -> Item:
    """A picture in any format that Pillow reads; ValueError if it is none."""
    try:
        with Image.open(path) as image:
            return Item("image", np.asarray(image.convert("RGB")).copy())
    except UnidentifiedImageError:
        raise ValueError(f"{path}: no picture that can be read") from None


def read_audio(path: Path) -> Item:
    """Sound in any format that FFmpeg reads, at 16 kHz and in mono; ValueError if it is none."""
    samples = _decoded(path)
    if samples.ndim != 1:
        raise ValueError(f"{path}: a video; give it as one")
    return Item("audio", samples)


def read_video(path: Path, fps: float) -> Item:
    """A video in any format that FFmpeg reads, of which ``fps`` frames a second are kept.

    Raises ValueError if it is none, or has fewer frames than that.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path}: no video in it")
        rate = float(container.streams.video[0].average_rate or 0)
    if not 0 < fps <= rate:
        raise ValueError(f"fps={fps:g}: {path} has {rate:g} frames a second; take fewer")
    frames = _decoded(path)
    kept = np.floor(np.arange(0, len(frames), rate / fps)).astype(int)
    return Item("video", frames[kept], fps)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path), "r")
    except av.error.InvalidDataError:
        raise ValueError(f"{path}: nothing that FFmpeg can read") from None


def _decoded(path: Path) -> np.ndarray:
    _opened(path).close()  # says in plain words what is wrong
    return decoded(path.read_bytes())
