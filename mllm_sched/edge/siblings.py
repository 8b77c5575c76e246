"""What an agent tells its front and its siblings: how busy it is, what it has, what it learned."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pandas as pd

from mllm_sched.edge.agent import Agent
from mllm_sched.edge.journal_table import summarize
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.logs import say
from mllm_sched.edge.proto import agent_pb2 as pb
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.measurement import TableError, check_table
from mllm_sched.pipeline.options import Security
from mllm_sched.pipeline.wire import PIECE_BYTES

log = logging.getLogger(__name__)
PATIENCE_S = 5.0  # for each sibling; an agent that starts must not wait for one that hangs
MOST_BYTES = 64 << 20


class AgentTalk(rpc.AgentServicer):
    """The service by which an agent tells this."""

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


def learn_from(
    siblings: Iterable[str], learner: Learner, scatter: float, security: Security
) -> None:
    """Start a scheduler that has learned nothing yet from the measurements of its siblings.

    A sibling that does not answer, or measured other arms, is left out, and the log says so. The
    table is written to the journal before the scheduler learns from it.
    """
    if learner.has_learned:
        return
    asked = [_usable(address, learner, security) for address in siblings]
    tables = [table for table in asked if table is not None]
    if tables:
        learner.warm_start(pd.concat(tables, ignore_index=True), scatter)
    say(log, "learned-from-siblings", rows=sum(map(len, tables)))


def _usable(address: str, learner: Learner, security: Security) -> pd.DataFrame | None:
    try:
        table = experience_of(address, security)
        if table.empty:
            return None
        table = check_table(table, address)
        _check_arms(table, learner)
    except (grpc.RpcError, TableError, ValueError) as error:
        why = error.details() if isinstance(error, grpc.Call) else str(error)
        say(log, "sibling-left-out", "warning", sibling=address, why=why)
        return None
    return table


def experience_of(address: str, security: Security) -> pd.DataFrame:
    """The table of an agent's measurements; empty if it has none.

    Raises grpc.RpcError if it does not answer, and ValueError if the table is too large or is none.
    """
    credentials = security.channel_credentials()
    channel = (
        grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    )
    with channel:
        stub, received = rpc.AgentStub(channel), bytearray()
        call = stub.Experience(pb.Nothing(), timeout=PATIENCE_S, metadata=security.metadata)
        for rows in call:
            received += rows.csv
            if len(received) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes of experience")
    if not received:
        return pd.DataFrame()
    return pd.read_csv(io.BytesIO(received), dtype={"failed": str})


def _check_arms(table: pd.DataFrame, learner: Learner) -> None:
    """Every row must be on an arm of ours, in a context of ours; ValueError says what is not."""
    joint = learner.scheduler.joint
    missing = [name for name in joint.names if name not in table]
    if missing:
        raise ValueError(f"its table lacks {', '.join(missing)}")
    for row in table[list(joint.names)].drop_duplicates().to_dict("records"):
        joint.arm(**row)
