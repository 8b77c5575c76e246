"""One address for users, in front of several edge agents."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from mllm_sched.edge.agent_link import Agent
from mllm_sched.edge.agents import Agents
from mllm_sched.edge.front_config import FrontConfig, split_address
from mllm_sched.edge.held_bytes import HeldBytes
from mllm_sched.edge.relay import Relay, Task, shed
from mllm_sched.edge.users import Gate, Turned, User, Users
from mllm_sched.pipeline.jobs import Job, Jobs, RefusedError, Slot
from mllm_sched.pipeline.limits import Limits
from mllm_sched.pipeline.pieces import read_rest, read_start
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.security import Security, token_of
from mllm_sched.pipeline.service import abort, deadline_of, serve
from mllm_sched.pipeline.wire_header import (
    Header,
    MismatchError,
    WireError,
    read_header,
    read_table,
)

log = logging.getLogger(__name__)
Status = grpc.StatusCode

YOUNG_S = 60.0  # after its start; agents may have tasks of the front before
FAILED_IDS = 10_000  # remembered, since an agent may have their answers


class Front(rpc.NodeServicer):
    """The service: a node that has others do its work.

    Parameters
    ----------
    agents
        To relay to; watched by the caller.
    users
        Who may ask.
    limits
        Requests at a time, bytes of a message; the longest that an answer may take.
    held_bytes
        That all requests together may take.
    security
        Certificates to listen with; the token in it is for the agents.
    """

    def __init__(
        self,
        agents: Agents,
        users: Users,
        *,
        name: str = "front",
        limits: Limits = Limits(),
        held_bytes: int = 512 << 20,
        security: Security = Security(),
    ) -> None:
        self.agents, self.users, self.name = agents, users, name
        self.limits, self.security = limits, security
        self.jobs, self.held, self.gate = Jobs(limits.requests), HeldBytes(held_bytes), Gate()
        self.boot = uuid.uuid4().hex
        self.draining = False
        self._calls: Counter[str] = Counter()
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._young_until_s = asyncio.get_running_loop().time() + YOUNG_S

    async def Describe(self, request: pb.Nothing, context: Any) -> pb.Card:
        """What the agents that answer now take, all of them together."""
        try:
            self._user(context)
            cards = [agent.card for agent in self._up()]
        except Exception as error:
            await abort(context, error)
        return pb.Card(
            model=self.agents.model,
            name=self.name,
            encoders=sorted({modality for card in cards for modality in card.encoders}),
            cuts=["input"],
            max_bytes=min(self.limits.bytes, *(card.max_bytes for card in cards)),
            max_new_tokens=min(card.max_new_tokens for card in cards),
            limit=self.limits.requests,
            boot=self.boot,
            markers=cards[0].markers,
        )

    async def Encode(self, pieces: AsyncIterator[pb.Piece], context: Any) -> None:
        """Not served."""
        await context.abort(Status.UNIMPLEMENTED, "a front has no encoders; ask an edge agent")

    async def Generate(
        self, pieces: AsyncIterator[pb.Piece], context: Any
    ) -> AsyncIterator[pb.Event]:
        """Tokens of the answer, as an agent makes them. Sent again, a request finds its answer."""
        try:
            user = self._user(context)
            with self._call(user):
                ends_s = deadline_of(context, self.limits.answer_s)
                start = await read_start(pieces, self.limits.bytes, self.limits.idle_s)
                if job := self.jobs.find(_key(user, start), start.sha256):
                    job.extend(ends_s)
                else:
                    job = await self._begin(user, start, pieces, ends_s)
                async for event in job.follow(start.have, start.so_far):
                    yield event
        except Exception as error:
            await abort(context, error)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, wait for answers that were begun; agents go on with the rest."""
        self.draining = True
        await self.jobs.drain(grace_s)

    def close(self) -> None:
        """Nothing is held beyond the answers."""

    def _user(self, context: Any) -> User:
        user = self.users.who(token_of(context.invocation_metadata()))
        if user is None:
            raise RefusedError(Status.UNAUTHENTICATED, "no token, or a wrong one")
        return user

    def _up(self) -> list[Agent]:
        if up := self.agents.up():
            return up
        raise RefusedError(Status.UNAVAILABLE, "no edge agent answers")

    @contextmanager
    def _call(self, user: User) -> Iterator[None]:
        """One call more of a user; those that follow an answer again are no request, but few."""
        if self._calls[user.name] >= (most := 2 * user.at_once + 2):
            raise shed(self.agents.metrics, "at-once", f"{most} calls of {user.name} are open")
        self._calls[user.name] += 1
        try:
            yield
        finally:
            self._calls[user.name] -= 1
            if not self._calls[user.name]:
                del self._calls[user.name]

    async def _begin(
        self, user: User, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float
    ) -> Job:
        if self.draining:
            raise RefusedError(Status.UNAVAILABLE, "the front shuts down")
        self._up()
        key = _key(user, start)
        with self.jobs.take(key, start.sha256) as slot:
            self._admit(user, start.bytes, slot)
            async with slot.upload(ends_s):
                data, _ = await read_rest(pieces, start, self.limits.idle_s)
            items = tuple(part.modality for part in self._header(data, start).parts)
            task = Task(user.name, start.id, data, start.sha256, items)
            young = asyncio.get_running_loop().time() < self._young_until_s
            search = young or start.have > 0 or key in self._failed
            relay = Relay(self.agents, task, search=search)

            async def work(job: Job) -> None:
                await relay.run(job)
                self._remember(key, job)

            return self.jobs.launch(key, start.sha256, ends_s, slot, work)

    def _admit(self, user: User, size: int, slot: Slot) -> None:
        """What a request takes, until its place is given back."""
        metrics = self.agents.metrics
        try:
            self.gate.enter(user, asyncio.get_running_loop().time())
        except Turned as turned:
            raise shed(metrics, turned.reason, str(turned)) from None
        slot.also.callback(self.gate.leave, user)
        if not self.held.take(user.name, size):
            message = f"no room for {size} bytes: {self.held.total} of {self.held.limit} are held"
            raise shed(metrics, "queue-full", message)
        slot.also.callback(self.held.give, user.name, size)

    def _header(self, data: bytes, start: pb.Start) -> Header:
        """What a message says of itself, as far as a front must know; an agent checks it whole."""
        header = read_header(read_table(data)[1])
        if header.id != start.id:
            raise WireError(f"the message is of request {header.id}, not {start.id}")
        if header.model != (model := self.agents.model):
            theirs, ours = header.model[:12], model[:12]
            raise MismatchError(f"made for model {theirs}, the edge agents hold {ours}")
        if header.cut != "input":
            raise MismatchError(f"cut at {header.cut}, a front takes input")
        if header.logits:
            raise MismatchError("logits are not relayed: ask a node for them")
        return header

    def _remember(self, key: str, job: Job) -> None:
        """A request that failed, since an agent may go on with it all the same."""
        self._failed.pop(key, None)
        if job.failure is not None:
            self._failed[key] = None
        while len(self._failed) > FAILED_IDS:
            self._failed.popitem(last=False)


def _key(user: User, start: pb.Start) -> str:
    """The request's name among those of all users; the name of a user has no slash."""
    return f"{user.name}/{start.id}"


def run_front(config: FrontConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun, for ten seconds at most.

    Raises
    ------
    OSError
        If an address cannot be listened on, or a file not be read.
    ValueError
        If the users' file or a token is not valid.
    """
    asyncio.run(_run(config))


async def _run(config: FrontConfig) -> None:
    security = config.security
    users = Users.read(config.users_file) if config.users_file else Users.anyone()
    agents = Agents(config.agents, security, poll_s=config.poll_s)
    async with agents.watched():
        front = Front(
            agents,
            users,
            name=config.name,
            limits=Limits(config.at_once, config.message_bytes),
            held_bytes=config.held_bytes,
            security=security,
        )
        await serve(front, *split_address(config.listen))
