"""Why a request is refused, in words for the user and as a status for its program."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import grpc

from mllm_sched.pipeline.jobs import RefusedError
from mllm_sched.pipeline.node_errors import REFUSED, RETRY, seconds_told

_BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
_GONE = grpc.StatusCode.UNAVAILABLE
REASONS = {
    "rate": _BUSY,  # more requests a second than the user may send
    "at-once": _BUSY,  # more requests under way than the user may have
    "queue-full": _BUSY,  # no place in the queue
    "pushed-out": _BUSY,  # its place went to a user with less waiting
    "too-late": _BUSY,  # too much work goes before it
    "cannot": grpc.StatusCode.FAILED_PRECONDITION,  # not in time even if nothing else ran
    "journal": _GONE,  # nothing can be written
    "draining": _GONE,  # the process ends
}
_SHORTEST_S = 0.001  # a retry at once would be none


class Refusal(RefusedError):
    """A request that is not served now, for one of ``REASONS``.

    ``message`` is for the user, and names no other. ``retry_s`` are the seconds after which it is
    worth asking again; 0 if unknown.

    Examples
    --------
    >>> refusal = Refusal("rate", "2 requests a second are allowed", retry_s=0.25)
    >>> print(refusal, refusal.code.name, dict(refusal.metadata))
    rate: 2 requests a second are allowed; ask again in 0.25 s RESOURCE_EXHAUSTED \
{'refused': 'rate', 'retry-s': '0.25'}
    """

    def __init__(self, reason: str, message: str, *, retry_s: float = 0.0) -> None:
        self.reason = reason
        self.retry_s = max(retry_s, _SHORTEST_S) if 0 < retry_s < math.inf else 0.0
        again = _again(f"{self.retry_s:.3g}") if self.retry_s else ""
        super().__init__(REASONS[reason], f"{reason}: {message}{again}")

    @classmethod
    def told(cls, details: str, metadata: Iterable[tuple[str, Any]] | None) -> Self | None:
        """The refusal by which a call to another service ended; None if that was none.

        Examples
        --------
        >>> refusal = Refusal("rate", "2 requests a second are allowed", retry_s=0.25)
        >>> print(Refusal.told(str(refusal), refusal.metadata))
        rate: 2 requests a second are allowed; ask again in 0.25 s
        >>> Refusal.told("cannot: because", ())
        """
        told = {name: str(value) for name, value in metadata or ()}
        if (reason := told.get(REFUSED, "")) not in REASONS:
            return None
        message = details.removeprefix(f"{reason}: ")
        if retry := told.get(RETRY, ""):
            message = message.removesuffix(_again(retry))
        return cls(reason, message, retry_s=seconds_told(retry))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The same for programs, as metadata at the end of a call."""
        told = ((REFUSED, self.reason),)
        return (*told, (RETRY, f"{self.retry_s:.3g}")) if self.retry_s else told


def _again(retry_s: str) -> str:
    return f"; ask again in {retry_s} s"
