"""Requests as bytes: safetensors with a versioned JSON header, checked before a model sees them.

The layout::

    8 bytes     length of what follows, little-endian
    JSON        safetensors' table of tensors, with one text under __metadata__:
                {"request": "{... JSON of Header ...}"}
    tensors     prompt, part0, part0.scale, part1, ...

Nothing here is ever unpickled. What is refused, and why, stands in ``unpack``.
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

from mllm_sched.pipeline.requests import RAW, Item, Part, Request
from mllm_sched.pipeline.wire_header import (
    VERSION,
    Header,
    PartHeader,
    WireError,
    check,
    read_header,
    read_table,
)
from mllm_sched.pipeline.wire_rules import Rules
from mllm_sched.pipeline.wire_types import dequantised, quantised

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
