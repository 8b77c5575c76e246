"""What can become of a request that is not answered."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

REFUSED, RETRY = "refused", "retry-s"
"""In the metadata at the end of a call: one word for why, and seconds after which to ask again."""
_WORD = re.compile(r"[a-z-]{1,32}")
LONGEST_S = 3600.0  # to which seconds are believed


class NodeError(RuntimeError):
    """A request that was not answered.

    Parameters
    ----------
    code
        Status of its last try.
    tries
        How often it was sent.
    reason
        One word of an edge agent or its front for why it refused, ``too-late`` for example.
    retry_s
        After how many seconds it is worth asking again; 0 if nobody said.
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
    """The answer was made anew and begins differently; what came of it is void."""


class NodeBusy(NodeError):
    """The node serves as many requests as it may; later it will take this one."""


class NodeUnreachable(NodeError):
    """Nobody answered before the deadline."""


class DeadlineMissed(NodeError):
    """The deadline ended a try, mostly of a node that was there; the one before is told, too."""


def seconds_told(text: str) -> float:
    """What stands in the metadata; 0 if those are no seconds.

    >>> seconds_told("0.25"), seconds_told("soon"), seconds_told("nan"), seconds_told("inf")
    (0.25, 0.0, 0.0, 0.0)
    """
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(seconds, LONGEST_S) if 0 < seconds < math.inf else 0.0


ERRORS: Mapping[str, type[NodeError]] = {
    "RESOURCE_EXHAUSTED": NodeBusy,
    "DEADLINE_EXCEEDED": DeadlineMissed,
    "ABORTED": AnswerChanged,
}


def told_by(
    error: grpc.Call,
    address: str,
    deadline_s: float,
    tries: int,
    before: NodeError | None = None,
) -> NodeError:
    """What a call that ended with a status means for who asked.

    Parameters
    ----------
    error
        The call, as it was raised.
    address, deadline_s, tries
        Of the node, of the request, and how often it was sent.
    before
        How the try before ended, if nothing came of this one. One that the deadline ended knows no
        better reason.
    """
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
    return ERRORS.get(code.name, RequestRefused)(f"{address}: {details}", code, tries, **more)
