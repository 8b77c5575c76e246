"""A front as a process: opened from its configuration, explained, served."""

from __future__ import annotations

import asyncio
import logging

from mllm_sched.edge.agent_link import AgentLink
from mllm_sched.edge.agents import Agents
from mllm_sched.edge.front import Front
from mllm_sched.edge.front_config import FrontConfig
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.pipeline.options import Limits
from mllm_sched.pipeline.service import serve

log = logging.getLogger(__name__)


def run_front(config: FrontConfig) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun.

    Raises
    ------
    OSError
        If an address cannot be listened on, or a file not be read.
    ValueError
        If the users' file or a token is not valid.
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
    agents = Agents(config.agents, security, poll_s=config.poll_s, metrics=metrics)
    async with agents.watched():
        limits = Limits(config.at_once, config.message_bytes)
        front = Front(
            *(config.name, agents, users, limits, config.server_security),
            held_bytes=config.held_bytes,
        )
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
    agents = Agents(config.agents, config.client_security, poll_s=config.poll_s)
    async with agents.watched():
        return [_said(agent, agents.model) for agent in agents.all]


def _said(agent: AgentLink, model: str) -> str:
    if agent.status is None:
        return f"edge agent {agent.address}: does not answer now"
    if agent.model != model:
        return f"edge agent {agent.label}: holds another model than most, is never used"
    takes = "takes tasks" if agent.status.taking else f"takes none: {agent.status.why_not}"
    return f"edge agent {agent.label}: {', '.join(agent.card.encoders)}; {takes}"
