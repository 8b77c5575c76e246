"""Requests as bytes: safetensors with a versioned JSON header, checked before a model sees them.

The layout::

    8 bytes     length of what follows, little-endian
    JSON        safetensors' table of tensors, with one text under __metadata__:
                {"request": "{... JSON of Header ...}"}
    tensors     prompt, part0, part0.scale, part1, ...

Nothing here is ever unpickled. What is refused, and why, stands in ``unpack``; what the features
of a model must look like, in ``Rules``. ``wire_header.py`` is the part that needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from mllm_sched.pipeline.requests import (
    AUDIO_HZ,
    CUTS,
    RAW,
    WIRE_TYPES,
    Item,
    Layout,
    Part,
    Request,
)
from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf
from mllm_sched.pipeline.wire_header import (
    VERSION,
    Header,
    MismatchError,
    PartHeader,
    WireError,
    check,
    read_header,
    read_table,
)

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def quantised(features: Tensor, wire: str) -> dict[str, Tensor]:
    """Features as they travel: under ``""``, and for int8 the scale of each row under ``.scale``.

    Raises
    ------
    ValueError
        For an unknown type, or values that float16 cannot hold.

    Examples
    --------
    >>> sent = quantised(torch.tensor([[1.0, -2.0]]), "int8")
    >>> sent[""].tolist(), round(float(sent[".scale"]), 4)
    ([[64, -127]], 0.0157)
    """
    if wire == "int8":
        rows = features.float()
        scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        return {"": (rows / scale).round().clamp(-127, 127).to(torch.int8), ".scale": scale}
    if wire not in _FLOATS:
        raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRE_TYPES)}")
    sent = features.to(_FLOATS[wire]).contiguous()
    if features.isfinite().all() and not sent.isfinite().all():
        raise ValueError("features beyond what float16 holds: send them as bfloat16 or int8")
    return {"": sent}


def dequantised(sent: Tensor, scale: Tensor | None = None) -> Tensor:
    """Features in float32, from what was sent."""
    return sent.float() if scale is None else sent.float() * scale.float()


# Of raw items: an encoder enlarges what is small or narrow, so few bytes could fill the memory.
MAX_SIDE, MAX_ASPECT, MAX_FRAMES, MAX_AUDIO_S = 8192, 20, 256, 1200


class Rules:
    """What a server takes.

    Parameters
    ----------
    half
        Knows the model's identity, its modalities and the shape of their features: either half.
    cuts
        That are served.
    vocabulary
        Token ids lie below it.
    max_tokens
        Of a prompt with all its features, and its answer.
    max_new_tokens
        Of an answer.
    max_items
        Of one request.
    max_logits_bytes
        Of the logits of a prompt, if they are wanted.
    """

    def __init__(
        self,
        half: EncoderHalf | LanguageHalf,
        cuts: Sequence[str] = CUTS,
        *,
        max_tokens: int = 32768,
        max_new_tokens: int = 1024,
        max_items: int = 64,
        max_logits_bytes: int = 64 << 20,
    ) -> None:
        self.half = half
        self.dtype = half.dtype
        self.cuts = tuple(cuts)
        text = half.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.max_tokens = min(max_tokens, int(text.max_position_embeddings))
        self.max_new_tokens = max_new_tokens
        self.max_items = max_items
        self.max_logits_bytes = max_logits_bytes

    def check(self, header: Header) -> None:
        """Refuse what is not for this server, or asks for too much."""
        if header.model != self.half.identity:
            theirs, ours = header.model[:12], self.half.identity[:12]
            raise MismatchError(f"made for model {theirs}, this server holds {ours}")
        if header.cut not in self.cuts:
            raise MismatchError(f"cut at {header.cut}, this server takes {', '.join(self.cuts)}")
        if header.max_new_tokens > self.max_new_tokens:
            raise WireError(
                f"max_new_tokens={header.max_new_tokens}: at most {self.max_new_tokens} here"
            )
        if len(header.parts) > self.max_items:
            raise WireError(f"{len(header.parts)} items: at most {self.max_items} here")
        for part in header.parts:
            if part.modality not in self.half.projectors:
                held = ", ".join(self.half.projectors)
                raise MismatchError(f"{part.modality}: this model takes {held}")

    def shape(self, part: PartHeader, cut: str) -> tuple[int, int]:
        """Rows and width that the features of a part must have."""
        architecture, config = self.half.architecture, self.half.config
        try:
            if cut == "encoder":
                rows, width = architecture.encoded_shape(config, part.modality, part.layout)
            else:
                rows = architecture.tokens(config, part.modality, part.layout)
                width = int(config.get_text_config().hidden_size)
        except ValueError as error:
            raise WireError(f"{part.modality}: {error}") from error
        if architecture.tokens(config, part.modality, part.layout) > self.max_tokens:
            raise WireError(f"{part.modality}: {rows} rows: more than {self.max_tokens} tokens")
        return rows, width

    def check_item(self, item: Item) -> None:
        """Refuse raw input that would take far more memory than its bytes."""
        if item.modality == "audio":
            if len(item.data) > MAX_AUDIO_S * AUDIO_HZ:
                raise WireError(f"audio of {len(item.data)} samples: at most {MAX_AUDIO_S} s")
            return
        height, width = item.data.shape[-3:-1]
        if max(height, width) > min(MAX_SIDE, MAX_ASPECT * min(height, width)):
            raise WireError(
                f"{item.modality} of {height} x {width}: at most {MAX_SIDE} along a side, and "
                f"{MAX_ASPECT} times the other side"
            )
        if item.modality == "video" and len(item.data) > MAX_FRAMES:
            raise WireError(f"video of {len(item.data)} frames: at most {MAX_FRAMES}")

    def check_length(
        self,
        prompt: Sequence[int],
        layouts: Sequence[tuple[str, Layout]],
        max_new_tokens: int,
        *,
        logits: bool = False,
    ) -> None:
        """Refuse a request that is longer with its features and answer than the model reads."""
        tokens = sum(
            self.half.architecture.tokens(self.half.config, modality, layout)
            for modality, layout in layouts
        )
        if (total := len(prompt) + tokens + max_new_tokens) > self.max_tokens:
            raise WireError(f"{total} tokens with the answer: at most {self.max_tokens} here")
        wanted = 4 * self.vocabulary * (len(prompt) + tokens) if logits else 0
        if wanted > self.max_logits_bytes:
            most = self.max_logits_bytes
            raise WireError(f"logits of the prompt are {wanted} bytes: at most {most} here")


# safetensors' names of the types.
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
}


@dataclass(frozen=True, eq=False)
class Message:
    """A request that was checked: raw ``items`` if it is cut at the input, else ``parts``."""

    header: Header
    prompt: tuple[int, ...]
    items: tuple[Item, ...] = ()
    parts: tuple[Part, ...] = ()


def pack(
    request: Request,
    model: str,
    parts: Sequence[Part] | None = None,
    wire: str = "float32",
    *,
    logits: bool = False,
) -> bytes:
    """A request as bytes, to be generated from.

    Parameters
    ----------
    request
        Its raw items are sent if there are no ``parts``.
    model
        Identity of the model that the parts come from, or that raw items are meant for.
    parts
        Features of all items, with one cut.
    wire
        Type of the features on the wire: one of ``WIRE_TYPES``.
    logits
        Whether the logits are wanted beside the tokens.
    """
    tensors = {"prompt": torch.tensor(list(request.prompt), dtype=torch.int32)}
    if parts is None:
        described = tuple(
            PartHeader(item.modality, rate_hz=float(item.rate_hz)) for item in request.items
        )
        for index, item in enumerate(request.items):
            tensors[f"part{index}"] = torch.from_numpy(item.data).contiguous()
        cut, wire = "input", "raw"
    else:
        cuts = {part.cut for part in parts} or {"projector"}
        if len(cuts) > 1:
            raise ValueError(f"parts are cut at {' and '.join(sorted(cuts))}: expected one cut")
        (cut,) = cuts
        described = tuple(PartHeader(part.modality, **asdict(part.layout)) for part in parts)
        for index, part in enumerate(parts):
            tensors |= _named(index, quantised(part.features, wire))
    header = Header(
        VERSION, request.id, model, cut, wire, described, request.max_new_tokens, logits
    )
    return save(tensors, metadata={"request": json.dumps(asdict(header))})


def unpack(data: bytes, rules: Rules) -> Message:
    """The request that the bytes hold.

    Raises
    ------
    MismatchError
        If it is for another model, or for a cut that is not served.
    WireError
        For everything else: truncated or trailing bytes, a header that is too long or is not what
        this version expects, tensors of wrong name, type or shape, more than the limits allow,
        token ids out of range, NaN and infinite features.
    """
    table, text = read_table(data)
    header = read_header(text)
    rules.check(header)
    _check_tensors(table, header, rules)
    tensors = _tensors(data)
    prompt = _prompt(tensors["prompt"], rules)
    if header.cut == "input":
        items = _items(header, tensors)
        for item in items:
            rules.check_item(item)
        return Message(header, prompt, items=items)
    parts = _parts(header, tensors, rules.dtype)
    layouts = [(part.modality, part.layout) for part in parts]
    rules.check_length(prompt, layouts, header.max_new_tokens, logits=header.logits)
    return Message(header, prompt, parts=parts)


def _tensors(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except Exception as error:  # whatever the library objects to, the bytes are to blame
        raise WireError(f"not a safetensors message: {error}") from error


def _named(index: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"part{index}{suffix}": tensor for suffix, tensor in tensors.items()}


def _check_tensors(table: dict[str, Any], header: Header, rules: Rules | None) -> None:
    """Every tensor that the header promises, no other, each of the right type and shape."""
    wanted: dict[str, tuple[str, list[int] | None]] = {"prompt": ("I32", None)}
    for index, part in enumerate(header.parts):
        if header.cut == "input":
            wanted[f"part{index}"] = (_NAMES[np.dtype(RAW[part.modality][0]).name], None)
            continue
        shape = list(rules.shape(part, header.cut)) if rules else None
        wanted[f"part{index}"] = (_NAMES[header.wire], shape)
        if header.wire == "int8":
            wanted[f"part{index}.scale"] = ("F32", [shape[0], 1] if shape else None)
    if wrong := set(table) ^ set(wanted):
        raise WireError(f"tensors {', '.join(sorted(wrong))[:100]} missing or unknown")
    for name, (dtype, shape) in wanted.items():
        entry = table[name]
        check(entry, dict, name)
        check(entry.get("shape"), list, f"{name}: shape")
        if entry.get("dtype") != dtype or (shape is not None and entry["shape"] != shape):
            found = f"{entry.get('dtype')} {entry['shape']}"
            raise WireError(f"{name}: {found[:60]}: expected {dtype} {shape or ''}".rstrip())


def _prompt(tensor: Tensor, rules: Rules) -> tuple[int, ...]:
    if tensor.ndim != 1 or not 1 <= len(tensor) <= rules.max_tokens:
        shape = tuple(tensor.shape)
        raise WireError(f"prompt of shape {shape}: expected 1 to {rules.max_tokens} token ids")
    if int(tensor.min()) < 0 or int(tensor.max()) >= rules.vocabulary:
        raise WireError(f"prompt: token ids must lie within 0 and {rules.vocabulary - 1}")
    return tuple(tensor.tolist())


def _items(header: Header, tensors: dict[str, Tensor]) -> tuple[Item, ...]:
    try:
        return tuple(
            Item(part.modality, tensors[f"part{index}"].numpy(), part.rate_hz or 0.0)
            for index, part in enumerate(header.parts)
        )
    except ValueError as error:
        raise WireError(str(error)) from error


def _parts(header: Header, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Part, ...]:
    return tuple(
        Part(part.modality, header.cut, _features(f"part{index}", tensors, dtype), part.layout)
        for index, part in enumerate(header.parts)
    )


def _features(name: str, tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Features that are finite, also in the type that the model computes in."""
    features = dequantised(tensors[name], tensors.get(f"{name}.scale"))
    if not bool(features.to(dtype).isfinite().all()):
        raise WireError(f"{name}: NaN or infinite features, or too large for the model's type")
    return features


def read_parts(data: bytes) -> tuple[Part, ...]:
    """The features that an encoding node of one's own sent back; whoever takes them on checks.

    Raises
    ------
    WireError
        If the bytes are no message, or its tensors are not those of its header.
    """
    table, text = read_table(data)
    header = read_header(text)
    if header.cut == "input":
        raise WireError("raw items instead of features")
    _check_tensors(table, header, None)
    return _parts(header, _tensors(data), torch.float32)
