"""What an agent and its front have in common: a service for users, each within its limits.

Both speak the protocol of the pipeline's node, so that its client is the users' client too.
"""

from __future__ import annotations

import math
import time
import uuid
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc

from mllm_sched.edge.monitor import FrontMetrics, Metrics
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
_ROUNDING_S = 1e-6  # of sums of clock readings


class HeldBytes:
    """Bounds the bytes held at once, in all and for each user.

    A user may hold at most as much as then stays free: one alone half of it, two a third each, so
    something is always left for one who comes later.

    Examples
    --------
    >>> held = HeldBytes(100)
    >>> held.take("ann", 40), held.take("ann", 20), held.take("bob", 30)
    (True, False, True)
    >>> held.give("ann", 40)
    >>> held.take("bob", 5), held.total
    (True, 35)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_user: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes held now."""
        return self._by_user.total()

    def take(self, user: str, size: int) -> bool:
        """Hold so many more bytes for a user, if there is room."""
        if self._by_user[user] + size > self.limit - self.total - size:
            return False
        self._by_user[user] += size
        return True

    def give(self, user: str, size: int) -> None:
        """Release bytes of a user."""
        self._by_user[user] -= size
        if not self._by_user[user]:
            del self._by_user[user]


@dataclass
class _Bucket:
    """A user's requests under way, and when its token bucket is full again."""

    under_way: int = 0
    full_s: float = -math.inf


class Gate:
    """Refuses users who send too many requests, per second or at a time, or leave calls open.

    The rate is a token bucket, stored as the time at which it is full again (the generic cell rate
    algorithm, ITU-T I.371). Users whose bucket is full and who have no request under way are
    forgotten.

    Examples
    --------
    >>> gate, user = Gate(), User("ann", rate_hz=2.0, burst=1)
    >>> gate.enter(user, 0.0)
    >>> gate.enter(user, 0.25)
    Traceback (most recent call last):
    mllm_sched.edge.refusals.Refusal: rate: 2 requests a second are allowed; ask again in 0.25 s
    >>> gate.enter(user, 0.5)
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._calls: Counter[str] = Counter()

    def enter(self, user: User, now_s: float) -> None:
        """One more request of a user, until ``leave``; ``Refusal`` if that is too many."""
        self._forget(now_s)
        bucket = self._buckets.get(user.name, _Bucket())
        if bucket.under_way >= user.at_once:
            message = f"{user.at_once} of your requests are under way, which is the most"
            raise Refusal("at-once", f"{message}; wait for an answer")
        early_s = bucket.full_s - (user.burst - 1) / user.rate_hz - now_s
        if early_s > _ROUNDING_S:
            message = f"{user.rate_hz:g} requests a second are allowed"
            raise Refusal("rate", message, retry_s=early_s)
        bucket.under_way += 1
        bucket.full_s = max(bucket.full_s, now_s) + 1 / user.rate_hz
        self._buckets[user.name] = bucket

    def leave(self, user: User) -> None:
        """A request that entered is over."""
        self._buckets[user.name].under_way -= 1

    @contextmanager
    def call(self, user: User) -> Iterator[None]:
        """One more open call, also one that only follows an answer; ``Refusal`` if too many are.

        A caller whose connection broke comes again before the broken call is noticed, so a user may
        have twice as many as requests, and two more.
        """
        if self._calls[user.name] >= (most := 2 * user.at_once + 2):
            raise Refusal("at-once", f"{most} calls of {user.name} are open")
        self._calls[user.name] += 1
        try:
            yield
        finally:
            self._calls[user.name] -= 1
            if not self._calls[user.name]:
                del self._calls[user.name]

    def _forget(self, now_s: float) -> None:
        """Look at two users a call, in turn, so that the number of users stays bounded."""
        for name in list(islice(self._buckets, 2)):
            bucket = self._buckets.pop(name)
            if bucket.under_way or bucket.full_s > now_s:
                self._buckets[name] = bucket


class UserService(rpc.NodeServicer):
    """Takes requests of users, and hands each to ``_begin`` once.

    ``limits`` and ``held_bytes`` are of all requests together, ``security`` has certificates alone:
    a user's token says who asks. ``metrics`` count every request that is refused before it is a
    job.
    """

    def __init__(
        self,
        users: Users,
        limits: Limits,
        security: Security,
        metrics: Metrics | FrontMetrics,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self.users, self.limits, self.security = users, limits, security
        self.metrics, self.held = metrics, HeldBytes(held_bytes)
        self.gate, self.jobs = Gate(), Jobs(limits.requests)
        self.boot = uuid.uuid4().hex
        self.draining = False

    @abstractmethod
    def card(self) -> pb.Card:
        """What is taken here."""

    @abstractmethod
    async def _begin(self, user: User, start: pb.Start, pieces: Any, ends_s: float) -> Job:
        """Receive a new request, and launch its answer.

        Its place must be taken before anything is awaited: it may come twice at a time.
        """

    async def _finished(self, user: User, start: pb.Start) -> Job | None:
        """An answer that was given before this process began, if there is one."""
        return None

    async def Describe(self, request: pb.Nothing, context: Any) -> pb.Card:
        """What is taken here, for those who may ask."""
        try:
            self._user(context)
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
            user = self._user(context)
            with self.gate.call(user):
                start = await read_start(pieces, self.limits.bytes, self.limits.idle_s)
                ends_s = deadline_of(context, self.limits.answer_s)
                job = await self._job(user, start, accepting(pieces, context), ends_s)
                async for event in job.follow(start.have, start.so_far):
                    yield event
        except Exception as error:
            if job is None and (reason := reason_of(error)):
                self.metrics.shed(reason)
            if isinstance(error, Refusal):
                context.set_trailing_metadata(error.metadata)
            await abort(context, error)

    async def _job(self, user: User, start: pb.Start, pieces: Any, ends_s: float) -> Job:
        """The one job of a request: under way, answered before, or new."""
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
            return self._user(context)
        except RefusedError as error:
            await abort(context, error)
            raise

    def _user(self, context: Any) -> User:
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
    """The rest of a request; the caller is told first that the request is taken.

    A front sends no data before that. What is refused by its start is never uploaded; and a call of
    gRPC's asyncio client that is refused while it sends ends as INTERNAL, whatever it was told.
    """
    await context.send_initial_metadata(((ACCEPTED, "1"),))
    async for piece in pieces:
        yield piece


def key_of(user: User, start: pb.Start) -> str:
    """Names a request among those of all users: nobody finds another's by its id."""
    return f"{user.name}/{start.id}"


def reason_of(error: Exception) -> str:
    """The reason a refusal is counted under; empty for an error, or a mere second try."""
    if isinstance(error, Refusal):
        return error.reason
    shed = {Status.RESOURCE_EXHAUSTED: "queue-full", Status.DEADLINE_EXCEEDED: "deadline"}
    return shed.get(code_of(error), "")


def now_s() -> float:
    """The clock of queues and gates, in seconds."""
    return time.monotonic()
