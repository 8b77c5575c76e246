"""The edge agents behind a front: asked again and again how they are."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mllm_sched.edge.agent_link import AgentLink
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.pipeline.options import Security

log = logging.getLogger(__name__)

POLL_S = 0.5
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between questions to one that is down


class Agents:
    """All agents of a front. Those of another model than most are never used.

    Parameters
    ----------
    addresses
        ``HOST:PORT`` of each.
    security
        See ``AgentLink``.
    poll_s
        Seconds between two questions to one that answers.
    metrics
        Told of everything; by default nobody reads them.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        security: Security = Security(),
        *,
        poll_s: float = POLL_S,
        metrics: FrontMetrics | None = None,
    ) -> None:
        self.all = [AgentLink(address, security) for address in addresses]
        self.metrics = metrics or FrontMetrics(addresses)
        self._poll_s = poll_s
        self._foreign: set[AgentLink] = set()

    @property
    def model(self) -> str:
        """Identity of the model that most of them hold, as far as is known; the first's in a tie.

        Agents that are down have their say: their model stays that of the system.
        """
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
            holds, others = agent.model[:12], model[:12]
            say(
                *(log, "agent-of-another-model", "error"),
                agent=agent.label,
                holds=holds,
                others=others,
            )
        self._foreign = foreign
        up = len(self.up())
        self.metrics.agents(up, len(self.all) - up)
