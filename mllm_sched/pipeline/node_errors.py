"""Errors of a request that was not answered."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

REFUSED, RETRY = "refused", "retry-s"
"""Trailing metadata of a call: one word for why, and seconds after which to ask again."""
_WORD = re.compile(r"[a-z-]{1,32}")
LONGEST_S = 3600.0  # to which seconds are believed


class NodeError(RuntimeError):
    """A request that was not answered, with the status of its last try.

    ``reason`` is one word of an edge agent or front (``too-late``), ``retry_s`` the seconds after
    which to ask again; 0 if unknown.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        tries: int = 1,
        *,
        reason: str = "",
        retry_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code, self.tries = code, tries
        self.reason, self.retry_s = reason, retry_s


class RequestRefused(NodeError):
    """The node will not serve this request, however often it is sent."""


class AnswerChanged(RequestRefused):
    """The answer was generated again and begins differently; tokens received so far are void."""


class NodeBusy(NodeError):
    """The node serves as many requests as it may; worth asking again later."""


class NodeUnreachable(NodeError):
    """Nobody answered before the deadline."""


class DeadlineMissed(NodeError):
    """The deadline ended a try; the message tells of the try before, too."""


def seconds_told(text: str) -> float:
    """Seconds in metadata; 0 if they are invalid.

    >>> seconds_told("0.25"), seconds_told("soon"), seconds_told("nan"), seconds_told("inf")
    (0.25, 0.0, 0.0, 0.0)
    """
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(seconds, LONGEST_S) if 0 < seconds < math.inf else 0.0


_ERRORS = {
    "RESOURCE_EXHAUSTED": NodeBusy,
    "DEADLINE_EXCEEDED": DeadlineMissed,
    "ABORTED": AnswerChanged,
}


def error_of(
    error: grpc.Call,
    address: str,
    deadline_s: float,
    tries: int,
    before: NodeError | None = None,
) -> NodeError:
    """The error of a call; ``before`` is that of the previous try, where no token came since."""
    code, details = error.code(), error.details() or "no reason given"
    told = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    more: dict[str, Any] = {
        "reason": told.get(REFUSED, "") if _WORD.fullmatch(told.get(REFUSED, "")) else "",
        "retry_s": seconds_told(told.get(RETRY, "")),
    }
    if code.name == "DEADLINE_EXCEEDED":
        details = f"no complete answer in {deadline_s:g} s: {details}"
        if before:
            details += f"; the try before: {before}"
            if not more["reason"]:
                more = {"reason": before.reason, "retry_s": before.retry_s}
    return _ERRORS.get(code.name, RequestRefused)(f"{address}: {details}", code, tries, **more)
