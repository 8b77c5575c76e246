"""The edge agents behind a front: how each is, and the way to it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.edge.placement import Candidate, Prediction
from mllm_sched.edge.proto import agent_pb2 as pb
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.edge.service import BEHALF, now_s
from mllm_sched.pipeline.options import Security
from mllm_sched.pipeline.proto import node_pb2, node_pb2_grpc

log = logging.getLogger(__name__)

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between questions to one that is down
ANSWER_S = 2.0  # an agent that takes longer to tell how it is counts as down
HOLDS_S = 0.5  # and one that takes longer to tell whether it has a task does not have it
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 5000),  # a link that is cut ends the answers that came over it
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # done by the relay, which knows what came already
]


@dataclass(eq=False)
class Sent:
    """A task that this front sent; its bytes were with the agent at ``at_s``."""

    encode_s: float
    at_s: float = math.inf


class AgentLink:
    """One agent, as the front sees it; ``security`` has the front's own token and certificates."""

    def __init__(self, address: str, security: Security) -> None:
        self.address = address
        self.name = self.model = self.boot = ""  # as last told
        self.card = node_pb2.Card()
        self.status: pb.AgentStatus | None = None
        self._metadata = security.metadata
        self._sent: list[Sent] = []
        self._hurry = asyncio.Event()
        self._tasked_s = -math.inf  # when a task was last sent there, or it came up
        self.passed = 0  # tasks that others got since then
        credentials = security.channel_credentials()
        self._channel = (
            grpc.aio.secure_channel(address, credentials, _OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(address, _OPTIONS)
        )
        self._agent = rpc.AgentStub(self._channel)
        self._node = node_pb2_grpc.NodeStub(self._channel)

    @property
    def up(self) -> bool:
        """Whether it answered when it was last asked."""
        return self.status is not None

    @property
    def label(self) -> str:
        """Its name, and what tells it from another of that name."""
        return f"{self.name} at {self.address}"

    @property
    def life(self) -> tuple[str, str]:
        """Which process this is: another after a restart."""
        return self.address, self.boot

    def candidate(self) -> Candidate:
        """What placement has to know of it now."""
        assert self.status, f"{self.label} is down"
        status, sent_s = self.status, sum(sent.encode_s for sent in self._sent)
        return Candidate(
            self.label,
            frozenset(self.card.encoders),
            {told.modality: _prediction(told) for told in status.predictions},
            status.backlog_s + sent_s,
            status.answer_s,
            status.waiting + status.running + len(self._sent),
            now_s() - self._tasked_s,
            self.passed,
        )

    def tasked(self) -> None:
        """A task goes there."""
        self._tasked_s, self.passed = now_s(), 0

    @contextmanager
    def sending(self, encode_s: float) -> Iterator[Sent]:
        """A task on its way; it is counted here until the agent's own status counts it."""
        sent = Sent(encode_s)
        self._sent.append(sent)
        try:
            yield sent
        finally:
            with suppress(ValueError):  # a status counts it already
                self._sent.remove(sent)

    def generate(self, pieces: AsyncIterator[node_pb2.Piece], user: str, left_s: float) -> Any:
        """The call that sends a task and brings its events."""
        metadata = (*self._metadata, (BEHALF, user))
        return self._node.Generate(pieces, timeout=left_s, metadata=metadata)

    async def holds(self, user: str, name: str) -> bool:
        """Whether it has that task, under way or answered; one that cannot tell does not."""
        asked = pb.Held(user=user, id=name)
        try:
            reply = await self._agent.Holds(asked, timeout=HOLDS_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            say(log, "agent-silent", "warning", agent=self.label, why=error.details())
            return False
        return bool(reply.held)

    def lost(self, why: str) -> None:
        """It broke off: it counts as down until it answers again, and is asked at once."""
        if self.up:
            say(log, "agent-lost", "warning", agent=self.label, why=why)
            self.status = None
            self._hurry.set()

    async def ask(self) -> None:
        """How it is now."""
        asked_s = now_s()
        about = {"timeout": ANSWER_S, "metadata": self._metadata}
        try:
            status = await self._agent.Status(pb.Nothing(), **about)
            if status.boot != self.boot:
                self.card = await self._node.Describe(node_pb2.Nothing(), **about)
        except grpc.aio.AioRpcError as error:
            self.lost(f"{error.code().name}, {error.details()}")
            return
        was_up, self.status = self.up, status
        self.name, self.model, self.boot = status.name, status.model, status.boot
        if not was_up:
            say(log, "agent-up", agent=self.label, boot=self.boot)
            self.tasked()  # of which it knows nothing: others go on as they are
        self._sent = [sent for sent in self._sent if sent.at_s >= asked_s]

    async def pause(self, pause_s: float) -> None:
        """Until it is time to ask again, at once if it was lost meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()
        self._hurry.clear()

    async def close(self) -> None:
        """Give the connection back."""
        await self._channel.close()


class Agents:
    """All agents of a front, asked for their status every ``poll_s``.

    Those of another model than most are never used. ``addresses`` are ``HOST:PORT`` of each.
    """

    def __init__(
        self, addresses: Sequence[str], security: Security, poll_s: float, metrics: FrontMetrics
    ) -> None:
        self.all = [AgentLink(address, security) for address in addresses]
        self.metrics = metrics
        self._poll_s = poll_s
        self._foreign: set[AgentLink] = set()

    @property
    def model(self) -> str:
        """Identity of the model that most hold, those that are down too; the first's in a tie."""
        known = Counter(agent.model for agent in self.all if agent.model)
        return known.most_common(1)[0][0] if known else ""

    def up(self) -> list[AgentLink]:
        """Those that answer and hold the model."""
        model = self.model
        return [agent for agent in self.all if agent.up and agent.model == model]

    async def holder(self, user: str, name: str) -> AgentLink | None:
        """The agent that has that task already, if one does."""
        asked = self.up()
        replies = await asyncio.gather(*(agent.holds(user, name) for agent in asked))
        return next((agent for agent, held in zip(asked, replies, strict=True) if held), None)

    def gets(self, agent: AgentLink) -> None:
        """A task goes to this agent, and not to the others."""
        for other in self.all:
            other.passed += 1
        agent.tasked()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """A block during which they are watched; all were asked once when it begins."""
        await asyncio.gather(*(agent.ask() for agent in self.all))
        self._compare()
        tasks = [asyncio.create_task(self._watch(agent)) for agent in self.all]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(agent.close() for agent in self.all))

    async def _watch(self, agent: AgentLink) -> None:
        pause_s = SHORTEST_PAUSE_S
        while True:
            await agent.pause(self._poll_s if agent.up else pause_s)
            await agent.ask()
            pause_s = SHORTEST_PAUSE_S if agent.up else min(2 * pause_s, LONGEST_PAUSE_S)
            self._compare()

    def _compare(self) -> None:
        model = self.model
        foreign = {agent for agent in self.all if agent.model not in ("", model)}
        for agent in foreign - self._foreign:
            holds, others, name = agent.model[:12], model[:12], agent.label
            say(log, "agent-of-another-model", "error", agent=name, holds=holds, others=others)
        self._foreign = foreign
        up = len(self.up())
        self.metrics.agents(up, len(self.all) - up)


def _prediction(told: pb.Prediction) -> Prediction:
    energy_j = told.energy_j if told.energy_j > 0 else math.nan  # its meter is gone
    return Prediction(told.latency_s, energy_j, told.infeasible)
