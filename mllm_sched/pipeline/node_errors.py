"""What can become of a request that is not answered."""

from __future__ import annotations

import grpc

RETRY = "retry-s"  # in the metadata at the end of a call: seconds after which to ask again


class NodeError(RuntimeError):
    """A request that was not answered; ``code`` is the status of its last try."""

    def __init__(self, message: str, code: grpc.StatusCode, tries: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.tries = tries


class RequestRefused(NodeError):
    """The node will not serve this request, however often it is sent."""


class AnswerChanged(RequestRefused):
    """The answer was made anew and begins differently; what came of it is void."""


class NodeBusy(NodeError):
    """The node serves as many requests as it may; later it will take this one.

    ``retry_s`` is after how many seconds it is worth asking again, 0 if the node does not say.
    """

    def __init__(
        self, message: str, code: grpc.StatusCode, tries: int = 1, retry_s: float = 0.0
    ) -> None:
        super().__init__(message, code, tries)
        self.retry_s = retry_s


class NodeUnreachable(NodeError):
    """Nobody answered before the deadline."""


class DeadlineMissed(NodeError):
    """The node was there, but the answer was not complete at the deadline."""


def told_by(error: grpc.Call, address: str, deadline_s: float, tries: int) -> NodeError:
    """What a call that ended with a status means for who asked.

    Parameters
    ----------
    error
        The call, as it was raised.
    address, deadline_s, tries
        Of the node, of the request, and how often it was sent.
    """
    code, details = error.code(), error.details() or "no reason given"
    message = f"{address}: {details}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        told = {key: value for key, value in error.trailing_metadata() or () if key == RETRY}
        return NodeBusy(message, code, tries, float(told.get(RETRY, 0.0)))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = f"{address}: no complete answer in {deadline_s:g} s: {details}"
        return DeadlineMissed(late, code, tries)
    changed = code is grpc.StatusCode.ABORTED
    return (AnswerChanged if changed else RequestRefused)(message, code, tries)
