"""Requests to a multimodal model: raw items or their features, and a prompt of token ids."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mllm_sched.pipeline.encoders import CHECKPOINT
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
    """One raw input; ValueError if it is none.

    ``data`` is an image, uint8 (height, width, 3), a video, uint8 (frames, height, width, 3), or
    audio, int16 (samples,). ``rate_hz`` are frames or samples per second; audio has 16 kHz.
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

    ``prompt`` are token ids, with a placeholder for each item, in the order of ``items``. ``id``
    stays the same when the request is sent again.
    """

    prompt: Sequence[int]
    items: Sequence[Item] = ()
    max_new_tokens: int = 16
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def bytes(self) -> int:
        """Of all its items, uncompressed."""
        return sum(item.bytes for item in self.items)


def prompt_ids(
    markers: Mapping[str, int], modalities: Sequence[str], text: Sequence[int]
) -> tuple[int, ...]:
    """Token ids of the items in order, then the text; ValueError if the model takes no such item.

    ``text`` are token ids; those of small models are bytes: ``b"What is this?"``.

    Examples
    --------
    >>> prompt_ids({"begin": 257, "image": 260}, ["image"], b"hi")
    (257, 260, 104, 105)
    """
    ids = [markers["begin"]] if "begin" in markers else []
    for modality in modalities:
        if modality not in markers:
            taken = ", ".join(name for name in markers if name.isalpha() and name != "begin")
            raise ValueError(f"the model takes no {modality}; it takes {taken}")
        around = (f"{modality}.start", modality, f"{modality}.end")
        ids += [markers[name] for name in around if name in markers]
    return (*ids, *text)


def encode_text(
    source: str, markers: Mapping[str, int], modalities: Sequence[str], text: str
) -> tuple[int, ...]:
    """Token ids of a question in words, by the tokenizer and chat template of a checkpoint.

    Without a template the items come first, as in ``prompt_ids``.
    """
    tokenizer = _tokenizer(source)
    if tokenizer is None:
        return prompt_ids(markers, modalities, text.encode())
    if not tokenizer.chat_template:
        return prompt_ids(markers, modalities, tokenizer(text, add_special_tokens=False).input_ids)
    content = [*({"type": kind} for kind in modalities), {"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    return tuple(made["input_ids"])


class TextStream:
    """An answer as text, token by token; an incomplete character is held back."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: list[int] = []
        self._said = 0

    def add(self, token: int) -> str:
        """New text, perhaps none, with one more token."""
        self._tokens.append(token)
        return self._new(decode_text(self._source, self._tokens).rstrip("\ufffd"))

    def rest(self) -> str:
        """Text that was held back, at the end."""
        return self._new(decode_text(self._source, self._tokens))

    def _new(self, text: str) -> str:
        new, self._said = text[self._said :], max(self._said, len(text))
        return new


def decode_text(source: str, tokens: Sequence[int]) -> str:
    """Tokens as text; of small models, printable bytes, and all others by number."""
    if (tokenizer := _tokenizer(source)) is not None:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    return "".join(chr(token) if 32 <= token < 127 else f"<{token}>" for token in tokens)


@lru_cache(maxsize=2)
def _tokenizer(source: str) -> Any:
    if not source.startswith(CHECKPOINT):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.removeprefix(CHECKPOINT))
