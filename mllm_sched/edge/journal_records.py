"""What a journal holds."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class AlreadyAnswered(ValueError):
    """An answer to this request of this user is kept already."""


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes
    ----------
    id
        They rise.
    now_s
        Seconds of service; see ``Journal.now_s``.
    kind
        ``started``, ``decided``, ``measured``, ``cancelled``, ``warm-start``, ``limits``,
        ``clock`` (the wall clock was set back), ``resumed`` (a call failed, and memory was built
        anew from the journal) or ``relearned`` (another version of the rule learned from the
        measurements).
    decision
        ``Decision.id`` of what it is about, if it is about one.
    body
        All else, in words and numbers.
    """

    id: int
    now_s: float
    kind: str
    decision: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True)
class StoredAnswer:
    """An answer that was given: the digest of its request, its tokens, and its end as sent."""

    digest: bytes
    tokens: tuple[int, ...]
    finished: bytes
    at_s: float


@dataclass(frozen=True)
class Snapshot:
    """A scheduler as it was after an event, and what its learner knew besides."""

    after: int
    scheduler: bytes
    standing: Mapping[str, Any]


def as_json(body: Mapping[str, Any]) -> str:
    """Compact; numbers of NumPy as numbers. ValueError for NaN, which JSON has not."""
    return _ENCODER.encode(body)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known: neither None, nor NaN, nor infinite."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def digest(*parts: bytes) -> int:
    """CRC-32 of all parts together."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return value.tolist()
    raise TypeError(f"{value!r}: a {type(value).__name__} has no place in a journal")


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain, allow_nan=False)
