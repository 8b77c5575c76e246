"""What can become of a request that is not answered."""

from __future__ import annotations

import grpc


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
    """The node serves as many requests as it may; later it will take this one."""


class NodeUnreachable(NodeError):
    """Nobody answered before the deadline."""


class DeadlineMissed(NodeError):
    """The node was there, but the answer was not complete at the deadline."""
