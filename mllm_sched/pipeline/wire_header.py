"""The header of a request on the wire: what it says, and everything that is refused about it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from mllm_sched.pipeline.requests import CUTS, WIRE_TYPES, Layout
from mllm_sched.tasks import MODALITIES

VERSION = 1
MAX_HEADER_BYTES = 64 << 10
MAX_ID = 64
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
SCALE_BYTES = 4  # of each row in int8


class WireError(ValueError):
    """Bytes that are no valid request; the message says what is wrong with them."""


def is_id(name: str) -> bool:
    """Whether it may name a request: it is echoed in messages and logs, so nothing odd."""
    return 1 <= len(name) <= MAX_ID and name.isascii() and name.isprintable()


class MismatchError(WireError):
    """A valid request that is meant for another model or another kind of server."""


@dataclass(frozen=True)
class PartHeader:
    """One item, described."""

    modality: str
    grid: tuple[int, int, int] | None = None
    seconds_per_grid: float | None = None
    mel_frames: int | None = None
    rate_hz: float | None = None

    @property
    def layout(self) -> Layout:
        """What the LLM must know of it."""
        return Layout(self.grid, self.seconds_per_grid, self.mel_frames)


@dataclass(frozen=True)
class Header:
    """What is said of a request beside its tensors."""

    version: int
    id: str
    model: str
    cut: str
    wire: str
    parts: tuple[PartHeader, ...]
    max_new_tokens: int
    logits: bool


def read_table(data: bytes) -> tuple[dict[str, Any], str]:
    """The table of tensors, and the text of our header; nothing behind them is touched."""
    if len(data) < 8:
        raise WireError(f"{len(data)} bytes: too short for a header")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WireError(f"a header of {length} bytes: at most {MAX_HEADER_BYTES}")
    if length > len(data) - 8:
        raise WireError(f"truncated: {len(data) - 8} of {length} bytes of the header")
    table = _json(data[8 : 8 + length], "header")
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or set(metadata) != {"request"}:
        raise WireError("no request in the header's metadata")
    if not isinstance(metadata["request"], str):
        raise WireError("the request in the header's metadata is no text")
    return table, metadata["request"]


def _json(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: no valid JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise WireError(f"{what}: expected an object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number here")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def read_header(text: str) -> Header:
    """The header in a text; WireError names the field that is wrong."""
    fields = _json(text, "request")
    if fields.get("version") != VERSION:
        raise WireError(f"version {fields.get('version')!r}: this server speaks {VERSION}")
    _check_names(fields, Header, "request")
    check(fields["id"], str, "id", is_id(str(fields["id"])))
    check(fields["model"], str, "model")
    check(fields["cut"], str, "cut", fields["cut"] in CUTS)
    wires = ("raw",) if fields["cut"] == "input" else WIRE_TYPES
    check(fields["wire"], str, "wire", fields["wire"] in wires)
    check(fields["max_new_tokens"], int, "max_new_tokens", at_least=1)
    check(fields["logits"], bool, "logits")
    check(fields["parts"], list, "parts")
    raw = fields["cut"] == "input"
    return Header(**{**fields, "parts": tuple(_part(part, raw) for part in fields["parts"])})


def _part(fields: Any, raw: bool) -> PartHeader:
    check(fields, dict, "part")
    _check_names(fields, PartHeader, "part")
    check(fields["modality"], str, "modality", fields["modality"] in MODALITIES)
    grid, seconds = fields["grid"], fields["seconds_per_grid"]
    rate, frames = fields["rate_hz"], fields["mel_frames"]
    if raw:
        wanted = (grid, seconds, frames) == (None, None, None)
        check(rate, float, "rate_hz", wanted and 0 < _number(rate) < math.inf)
        return PartHeader(**fields)
    if rate is not None:
        raise WireError(f"rate_hz={rate!r}: features have none")
    if grid is not None:
        check(grid, list, "grid")
        check(grid, list, "grid", len(grid) == 3)
        for side in grid:
            check(side, int, f"grid={grid}", at_least=1)
    if (grid is not None and fields["modality"] == "video") != (seconds is not None):
        raise WireError(f"seconds_per_grid={seconds!r}: a video has it, with its grid")
    if seconds is not None:
        check(seconds, float, "seconds_per_grid", 0 < _number(seconds) < 1e4)
    if frames is not None:
        check(frames, int, "mel_frames", at_least=1)
        check(frames, int, "mel_frames", frames < 1 << 20)
    return PartHeader(**{**fields, "grid": None if grid is None else tuple(grid)})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def check(value: Any, kind: Any, name: str, right: Any = True, *, at_least: int = 0) -> None:
    """WireError unless the value has just this type, and is right: true, or not too small."""
    if type(value) is not kind or not right or (at_least and value < at_least):
        raise WireError(f"{name}={str(value)[:60]!r}: expected a valid {kind.__name__}")


def _check_names(fields: dict[str, Any], kind: Any, what: str) -> None:
    wanted = set(kind.__dataclass_fields__)
    if wrong := set(fields) ^ wanted:
        raise WireError(f"{what}: fields {', '.join(sorted(wrong))[:100]} missing or unknown")


def wire_bytes(rows: int, width: int, wire: str) -> int:
    """Bytes of the features of an item, without the header.

    Examples
    --------
    >>> wire_bytes(576, 4096, "float16")
    4718592
    >>> wire_bytes(576, 1024, "int8")
    592128
    """
    if wire not in VALUE_BYTES:
        raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRE_TYPES)}")
    return rows * (width * VALUE_BYTES[wire] + (SCALE_BYTES if wire == "int8" else 0))
