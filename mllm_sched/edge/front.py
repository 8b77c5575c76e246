"""One address for users, in front of several edge agents."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

import grpc

from mllm_sched.edge.agent_link import Agent
from mllm_sched.edge.agents import Agents
from mllm_sched.edge.held_bytes import HeldBytes
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.relay import Relay, Task
from mllm_sched.edge.service import UserService, key_of
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.jobs import Job, RefusedError, Slot
from mllm_sched.pipeline.limits import Limits
from mllm_sched.pipeline.pieces import read_rest
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.security import Security
from mllm_sched.pipeline.wire_header import (
    Header,
    MismatchError,
    WireError,
    read_header,
    read_table,
)

YOUNG_S = 60.0  # after its start; agents may have tasks of the front before
FAILED_IDS = 10_000  # remembered, since an agent may have their answers


class Front(UserService):
    """The service: a node that has others do its work.

    Parameters
    ----------
    name
        Of the front.
    agents
        To relay to; watched by the caller.
    users, limits, security
        See ``UserService``.
    held_bytes
        That all requests together may take.
    """

    def __init__(
        self,
        name: str,
        agents: Agents,
        users: Users,
        limits: Limits = Limits(),
        security: Security = Security(),
        *,
        held_bytes: int = 512 << 20,
    ) -> None:
        super().__init__(users, limits, security)
        self.name, self.agents = name, agents
        self.held = HeldBytes(held_bytes)
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._young_until_s = asyncio.get_running_loop().time() + YOUNG_S

    def card(self) -> pb.Card:
        """What the agents that answer now take, all of them together."""
        cards = [agent.card for agent in self._up()]
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

    def close(self) -> None:
        """Nothing is held beyond the answers."""

    def _up(self) -> list[Agent]:
        if up := self.agents.up():
            return up
        raise RefusedError(grpc.StatusCode.UNAVAILABLE, "no edge agent answers")

    async def _begin(
        self, user: User, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float
    ) -> Job:
        try:
            self._up()
            with self._take(user, start) as slot:
                self._hold(user, start.bytes, slot)
                async with slot.upload(ends_s):
                    data, _ = await read_rest(pieces, start, self.limits.idle_s)
                items = tuple(part.modality for part in self._header(data, start).parts)
                relay = self._relay(Task(user.name, start.id, data, start.sha256, items), start)
                key = key_of(user, start)

                async def work(job: Job) -> None:
                    await relay.run(job)
                    self._remember(key, job)

                return self.jobs.launch(key, start.sha256, ends_s, slot, work)
        except RefusedError as refused:
            if isinstance(refused, Refusal) or refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.agents.metrics.shed(getattr(refused, "reason", "queue-full"))
            raise

    def _hold(self, user: User, size: int, slot: Slot) -> None:
        """Room for a request, until its place is given back."""
        if not self.held.take(user.name, size):
            message = f"no room for {size} bytes: {self.held.total} of {self.held.limit} are held"
            raise Refusal("queue-full", message)
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
        if header.logits:  # of a long prompt they are hundreds of megabytes
            raise MismatchError("logits are not relayed: ask a node for them")
        return header

    def _relay(self, task: Task, start: pb.Start) -> Relay:
        """On its way; agents are asked for it first, if one of them may have it."""
        young = asyncio.get_running_loop().time() < self._young_until_s
        known = f"{task.user}/{task.id}" in self._failed
        return Relay(self.agents, task, search=young or known or start.have > 0)

    def _remember(self, key: str, job: Job) -> None:
        """A request that failed, since an agent may go on with it all the same."""
        self._failed.pop(key, None)
        if job.failure is not None:
            self._failed[key] = None
        while len(self._failed) > FAILED_IDS:
            self._failed.popitem(last=False)
