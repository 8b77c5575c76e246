"""What an agent tells its front and its siblings: how busy it is, what it has, what it learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from mllm_sched.edge.agent import Agent
from mllm_sched.edge.journal_table import summarize
from mllm_sched.edge.proto import agent_pb2 as pb
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.pipeline.wire import PIECE_BYTES


class AgentTalk(rpc.AgentServicer):
    """The service.

    Parameters
    ----------
    agent
        Of whom is told.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def Status(self, request: pb.Nothing, context: Any) -> pb.AgentStatus:
        """How busy the agent is, and what it expects of a task."""
        await self._check(context)
        agent, stage = self.agent, self.agent.stage
        return pb.AgentStatus(
            name=agent.name,
            boot=agent.boot,
            model=agent.half.identity,
            taking=not agent.why_not,
            why_not=agent.why_not,
            draining=agent.draining,
            waiting=len(stage.queue),
            running=stage.running + agent.answering.running,
            backlog_s=stage.backlog_s,
            answer_s=stage.admission.answer_s,
            limit_s=stage.loop.limit_s,
            predictions=[
                pb.Prediction(
                    modality=expected.modality,
                    latency_s=expected.latency_s,
                    energy_j=expected.energy_j,
                    infeasible=stage.loop.infeasible.get(expected.modality, False),
                )
                for expected in stage.admission.predictions()
            ],
        )

    async def Holds(self, request: pb.Held, context: Any) -> pb.HeldReply:
        """Whether the agent has a user's request, under way or answered."""
        await self._check(context)
        return pb.HeldReply(held=await self.agent.holds(request.user, request.id))

    async def Experience(self, request: pb.Nothing, context: Any) -> AsyncIterator[pb.Rows]:
        """What was measured of each arm so far, as CSV; nothing if there is nothing."""
        await self._check(context)
        text = await asyncio.to_thread(_as_csv, self.agent.journal.path)
        for place in range(0, len(text), PIECE_BYTES):
            yield pb.Rows(csv=text[place : place + PIECE_BYTES])

    async def _check(self, context: Any) -> None:
        user = await self.agent.check(context)
        if not user.front:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this is for fronts and agents")


def _as_csv(path: Path) -> bytes:
    table = summarize(path)
    return b"" if table.empty else table.to_csv(index=False).encode()
