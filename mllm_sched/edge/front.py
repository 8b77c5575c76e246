"""One address for users, in front of several edge agents; and its process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from mllm_sched.edge.agents import AgentLink, Agents
from mllm_sched.edge.config import FrontConfig
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.edge.relay import Relay
from mllm_sched.edge.service import UserService, key_of
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.jobs import Job, RefusedError
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.service import serve
from mllm_sched.pipeline.wire import Header, MismatchError, WireError, read_header, read_rest

log = logging.getLogger(__name__)


class Front(UserService):
    """The service: a node that has others do its work.

    ``agents``, to relay to, are watched by the caller; for the others see ``UserService``.
    """

    def __init__(
        self,
        name: str,
        agents: Agents,
        users: Users,
        limits: Limits,
        security: Security,
        held_bytes: int,
    ) -> None:
        super().__init__(users, limits, security, agents.metrics, held_bytes)
        self.name, self.agents = name, agents

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

    def _up(self) -> list[AgentLink]:
        if up := self.agents.up():
            return up
        raise RefusedError(grpc.StatusCode.UNAVAILABLE, "no edge agent answers")

    async def _begin(
        self, user: User, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float
    ) -> Job:
        self._up()
        with self._take(user, start) as slot:
            self._hold(user, start.bytes, slot)
            async with slot.upload(ends_s):
                data, _ = await read_rest(pieces, start, self.limits.idle_s)
            items = [part.modality for part in self._header(data, start).parts]
            relay = Relay(self.agents, user.name, start, data, items)
            return self.jobs.launch(key_of(user, start), start.sha256, ends_s, slot, relay.run)

    def _header(self, data: bytes, start: pb.Start) -> Header:
        """What a message says of itself, as far as a front must know; an agent checks it whole."""
        _, header = read_header(data)
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


def run_front(config: FrontConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun.

    Raises OSError if an address cannot be listened on or a file not be read, and ValueError if the
    users' file or a token is not valid.
    """
    metrics = FrontMetrics(config.agents)
    try:
        if config.metrics:
            host, _, port = config.metrics.rpartition(":")
            metrics.serve(host, int(port), open_to_all=config.open)
        asyncio.run(_serve(config, metrics))
    finally:
        metrics.close()


async def _serve(config: FrontConfig, metrics: FrontMetrics) -> None:
    users = config.read_users()
    security = config.client_security
    agents = Agents(config.agents, security, config.poll_s, metrics)
    async with agents.watched():
        limits = Limits(config.at_once, config.message_bytes)
        held_bytes = config.held_bytes
        front = Front(config.name, agents, users, limits, config.server_security, held_bytes)
        say(log, "front-started", front=config.name, boot=front.boot)
        await serve(front, config.host, config.port)


def explain(config: FrontConfig) -> str:
    """What a front of this configuration would do, and how its agents are now.

    Raises as ``run_front``, but listens nowhere.
    """
    return "\n".join(
        [
            f"front {config.describe()}",
            f"{config.at_once} requests at a time, which hold {config.held_bytes >> 20} MiB in "
            f"all and {config.message_bytes >> 20} MiB each at most",
            *asyncio.run(_agents_now(config)),
        ]
    )


async def _agents_now(config: FrontConfig) -> list[str]:
    metrics = FrontMetrics(config.agents)
    agents = Agents(config.agents, config.client_security, config.poll_s, metrics)
    async with agents.watched():
        return [_said(agent, agents.model) for agent in agents.all]


def _said(agent: AgentLink, model: str) -> str:
    if agent.status is None:
        return f"edge agent {agent.address}: does not answer now"
    if agent.model != model:
        return f"edge agent {agent.label}: holds another model than most, is never used"
    takes = "takes tasks" if agent.status.taking else f"takes none: {agent.status.why_not}"
    return f"edge agent {agent.label}: {', '.join(agent.card.encoders)}; {takes}"
