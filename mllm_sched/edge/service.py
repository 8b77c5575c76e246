"""What an agent and its front have in common: users ask, each for what is theirs, each thing once.

Both speak the protocol of the pipeline's node, so that its client is the users' client too.
"""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from mllm_sched.edge.gate import Gate, HeldBytes, OpenCalls
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.jobs import Job, Jobs, RefusedError, Slot
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.service import abort, code_of, deadline_of
from mllm_sched.pipeline.wire import read_start

Status = grpc.StatusCode
BEHALF = "on-behalf-of"
ACCEPTED = "accepted"
HELD_BYTES = 512 << 20


class Counts(Protocol):
    """Metrics that count who was refused."""

    def shed(self, reason: str) -> None:
        """A request was not served, for this reason."""


class UserService(rpc.NodeServicer):
    """Takes requests of users, and hands each to ``_begin`` once.

    Parameters
    ----------
    users
        Who may ask.
    limits
        Of all users together.
    security
        Certificates; a token says who asks.
    counts
        Told of every request that is refused before it is a job; jobs tell of themselves.
    held_bytes
        That all requests together may take.
    """

    def __init__(
        self,
        users: Users,
        limits: Limits,
        security: Security,
        counts: Counts,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.users, self.limits, self.security = users, limits, security
        self.counts, self.held = counts, HeldBytes(held_bytes)
        self.gate, self.calls = Gate(), OpenCalls()
        self.jobs = Jobs(limits.requests)
        self.boot = uuid.uuid4().hex
        self.draining = False

    @abstractmethod
    def card(self) -> pb.Card:
        """What is taken here."""

    @abstractmethod
    async def _begin(self, user: User, start: pb.Start, pieces: Any, ends_s: float) -> Job:
        """Receive a request that was never seen, and launch its answer.

        Its place is to be taken before anything is awaited: it may come twice at a time.
        """

    async def _finished(self, user: User, start: pb.Start) -> Job | None:
        """An answer that was given before this process began, if there is one."""
        return None

    async def Describe(self, request: pb.Nothing, context: Any) -> pb.Card:
        """What is taken here, for those who may ask."""
        try:
            self._who(context)
            return self.card()
        except Exception as error:
            await abort(context, error)
            raise

    async def Generate(
        self, pieces: AsyncIterator[pb.Piece], context: Any
    ) -> AsyncIterator[pb.Event]:
        """Tokens of the answer, as they come. Sent again, a request finds its answer."""
        job = None
        try:
            user = self._who(context)
            with self.calls.of(user):
                start = await read_start(pieces, self.limits.bytes, self.limits.idle_s)
                ends_s = deadline_of(context, self.limits.answer_s)
                job = await self._job(user, start, accepting(pieces, context), ends_s)
                async for event in job.follow(start.have, start.so_far):
                    yield event
        except Exception as error:
            if job is None and (reason := _reason(error)):
                self.counts.shed(reason)
            if isinstance(error, Refusal):
                context.set_trailing_metadata(error.metadata)
            await abort(context, error)

    async def _job(self, user: User, start: pb.Start, pieces: Any, ends_s: float) -> Job:
        """The one job of a request: that which is here, or was, or a new one."""
        if not (job := self._found(user, start, ends_s)):
            self._check_taking()
            if job := await self._finished(user, start):
                return job
            job = self._found(user, start, ends_s)  # it may have come meanwhile
        return job or await self._begin(user, start, pieces, ends_s)

    def _found(self, user: User, start: pb.Start, ends_s: float) -> Job | None:
        job = self.jobs.find(key_of(user, start), start.sha256)
        if job:
            job.extend(ends_s)
        return job

    async def Encode(self, pieces: Any, context: Any) -> AsyncIterator[pb.Piece]:
        """Not served: features go to the LLM server, not back to users."""
        await context.abort(Status.UNIMPLEMENTED, "ask with Generate")
        yield pb.Piece()  # never reached; makes this a stream

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what was begun."""
        self.draining = True
        await self.jobs.drain(grace_s)

    async def check(self, context: Any) -> User:
        """The user who calls; the call ends here if there is none."""
        try:
            return self._who(context)
        except RefusedError as error:
            await abort(context, error)
            raise

    def _who(self, context: Any) -> User:
        """The user whose token came with the call, or on whose behalf a front asks."""
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        user = self.users.who(token or None)
        if user is None:
            raise RefusedError(Status.UNAUTHENTICATED, "no token, or a wrong one")
        behalf = metadata.get(BEHALF)
        if behalf is None:
            return user
        if not user.front:
            raise RefusedError(Status.PERMISSION_DENIED, "only a front may ask for others")
        return self.users.named(str(behalf))

    def _check_taking(self) -> None:
        """Refusal, if nothing new is taken now."""
        if self.draining:
            raise Refusal("draining", "this node shuts down; ask another, or later")

    def _take(self, user: User, start: pb.Start) -> Slot:
        """A place for one more request of this user, as long as its job lasts."""
        self._check_taking()
        slot = self.jobs.take(key_of(user, start), start.sha256)
        try:
            self.gate.enter(user, now_s())
        except Refusal:
            slot.release()
            raise
        slot.also.callback(self.gate.leave, user)
        return slot

    def _hold(self, user: User, size: int, slot: Slot) -> None:
        """Room for so many bytes of a request, until its place is given back."""
        if not self.held.take(user.name, size):
            message = f"no room for {size} bytes: {self.held.total} of {self.held.limit} are held"
            raise Refusal("queue-full", message)
        slot.also.callback(self.held.give, user.name, size)


async def accepting(pieces: AsyncIterator[pb.Piece], context: Any) -> AsyncIterator[pb.Piece]:
    """The rest of a request. Whoever reads on tells the caller first that it is taken.

    A front sends no data before that. What is refused by its start is never uploaded; and a call of
    gRPC's asyncio client that is refused while it sends ends as INTERNAL, whatever it was told.
    """
    await context.send_initial_metadata(((ACCEPTED, "1"),))
    async for piece in pieces:
        yield piece


def key_of(user: User, start: pb.Start) -> str:
    """Names a request among those of all users: nobody finds another's by its id."""
    return f"{user.name}/{start.id}"


def _reason(error: Exception) -> str:
    """As what a refusal is counted; empty for what is wrong, or no more than a second try."""
    if isinstance(error, Refusal):
        return error.reason
    shed = {Status.RESOURCE_EXHAUSTED: "queue-full", Status.DEADLINE_EXCEEDED: "deadline"}
    return shed.get(code_of(error), "")


def now_s() -> float:
    """The clock of queues and gates, in seconds."""
    return time.monotonic()
