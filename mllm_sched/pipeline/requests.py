"""What a user asks of a multimodal model: raw items and a prompt, or the items' features."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mllm_sched.tasks import MODALITIES

if TYPE_CHECKING:
    import torch

AUDIO_HZ = 16000.0
CUTS = ("input", "encoder", "projector")
"""Where a model may be cut: before its encoder, after it, or after its projector."""
WIRE_TYPES = ("float32", "float16", "bfloat16", "int8")
"""Types that features may have on the wire."""

RAW = {"image": (np.uint8, 3), "video": (np.uint8, 4), "audio": (np.int16, 1)}


@dataclass(frozen=True, eq=False)
class Item:
    """One raw input.

    ``data`` are pixels of an image, uint8 of shape (height, width, 3), frames of a video, uint8
    (frames, height, width, 3), or samples of audio, int16 (samples,). ``rate_hz`` are frames or
    samples per second; audio must have 16 kHz. Raises ValueError for anything else.
    """

    modality: str
    data: NDArray[np.generic]
    rate_hz: float = AUDIO_HZ

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"modality={self.modality!r}: expected one of {', '.join(MODALITIES)}")
        dtype, dimensions = RAW[self.modality]
        shape = self.data.shape
        if self.data.dtype != dtype or len(shape) != dimensions or 0 in shape:
            raise ValueError(
                f"{self.modality}: {self.data.dtype} of shape {shape}: expected "
                f"{np.dtype(dtype)} with {dimensions} dimensions, none of them 0"
            )
        if dimensions > 1 and shape[-1] != 3:
            raise ValueError(f"{self.modality}: {shape[-1]} channels: expected 3, red green blue")
        if not 0 < self.rate_hz < float("inf"):
            raise ValueError(f"rate_hz={self.rate_hz}: expected above 0")
        if self.modality == "audio" and self.rate_hz != AUDIO_HZ:
            raise ValueError(f"audio at {self.rate_hz:g} Hz: resample it to {AUDIO_HZ:g} Hz")

    @property
    def bytes(self) -> int:
        """Uncompressed."""
        return int(self.data.nbytes)


@dataclass(frozen=True)
class Layout:
    """What the LLM must know of an item beside its features."""

    grid: tuple[int, int, int] | None = None  # patches in time, height and width
    seconds_per_grid: float | None = None  # between two steps of the grid in time
    mel_frames: int | None = None  # of the audio's spectrogram, without padding


@dataclass(frozen=True, eq=False)
class Part:
    """Features of an item, of shape (rows, width), behind a cut of the model."""

    modality: str
    cut: str
    features: torch.Tensor
    layout: Layout


@dataclass(frozen=True, eq=False)
class Request:
    """A question about raw items.

    ``prompt`` are token ids, with one placeholder for each item, in the order of ``items``. ``id``
    is the same when the request is sent again; random by default.
    """

    prompt: Sequence[int]
    items: Sequence[Item] = ()
    max_new_tokens: int = 16
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def bytes(self) -> int:
        """Of all its items, uncompressed."""
        return sum(item.bytes for item in self.items)
