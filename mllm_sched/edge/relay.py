"""One request on its way to its answer, through one edge agent after the other if need be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc

from mllm_sched.edge.agents import AgentLink, Agents, Sent
from mllm_sched.edge.placement import NoAgentFits, Placed, place
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import ACCEPTED, now_s, reason_of
from mllm_sched.pipeline.jobs import Job, RefusedError
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.wire import digest_of, pieces_of

log = logging.getLogger(__name__)
Status = grpc.StatusCode

_LOST = (Status.UNAVAILABLE, Status.CANCELLED)  # the agent died, or shut down


class Relay:
    """Sends a task to an agent and hands its events on; if the agent is lost, to another.

    All are asked first whether one has it already, since it may have been sent by another front, or
    by this one before it died. No two agents are given it at once, and each process of an agent
    only once. The task is ``data``, begun by ``start``, with ``items`` of these modalities.
    """

    def __init__(
        self, agents: Agents, user: str, start: pb.Start, data: bytes, items: Sequence[str]
    ) -> None:
        self.agents, self.metrics = agents, agents.metrics
        self.user, self.id, self.sha256 = user, start.id, start.sha256
        self.data, self.items = data, items
        self._tried: set[tuple[str, str]] = set()
        self._refusal: RefusedError | None = None  # of the last agent that had no place

    async def run(self, job: Job) -> None:
        """Bring the job to its end: the answer, or the status that tells why there is none."""
        begun_s = now_s()
        try:
            async with job.in_time():
                finished = await self._answer(job)
        except TimeoutError:
            late = f"the deadline passed after {len(job.tokens)} tokens"
            self._refuse(job, RefusedError(Status.DEADLINE_EXCEEDED, late))
        except RefusedError as refused:
            self._refuse(job, refused)
        except Exception:
            log.exception("request %s/%s failed", self.user, self.id)
            self._refuse(job, RefusedError(Status.INTERNAL, "the front failed; see its log"))
        else:
            job.end(finished)
            self.metrics.answered(now_s() - begun_s, _evidence(finished))

    def _refuse(self, job: Job, why: RefusedError) -> None:
        job.end(failure=why)
        self.metrics.shed(reason_of(why) or "failed")

    async def _answer(self, job: Job) -> pb.Finished:
        encode_s = 0.0
        agent = await self.agents.holder(self.user, self.id)
        while True:
            if agent is None:
                agent, placed = self._place(job)
                encode_s = placed.encode_s
            ends_s, life = job.ends_s, agent.life
            try:
                return await self._follow(agent, job, encode_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is Status.DEADLINE_EXCEEDED and job.ends_s > ends_s:
                    continue  # of the first caller; another one waits for longer
                self._tried.add(life)
                self._judge(agent, job, error)
            agent = None

    def _place(self, job: Job) -> tuple[AgentLink, Placed]:
        up = self.agents.up()
        if not up:
            raise RefusedError(Status.UNAVAILABLE, "no edge agent answers")
        left = [agent for agent in up if agent.life not in self._tried]
        taking = {one.label: one for one in left if one.status and one.status.taking}
        if not taking:
            raise self._refusal or _not_taking(left)
        left_s = job.ends_s - now_s()
        try:
            placed = place(self.items, [one.candidate() for one in taking.values()], left_s)
        except NoAgentFits as none:
            raise self._refusal or Refusal(none.reason, str(none)) from None
        self.agents.gets(taking[placed.name])
        return taking[placed.name], placed

    async def _follow(self, agent: AgentLink, job: Job, encode_s: float) -> pb.Finished:
        """Add the agent's events to the job until the last, which is returned."""
        self.metrics.placed(agent.address)
        with agent.sending(encode_s) as sent:
            left_s = max(0.001, job.ends_s - now_s())
            accepted = asyncio.get_running_loop().create_future()
            call = agent.generate(self._pieces(job, sent, accepted), self.user, left_s)
            asking = asyncio.create_task(_until_accepted(call, accepted))
            try:
                async for event in call:
                    if event.WhichOneof("content") == "finished":
                        _check_count(event.finished.tokens, job)
                        return event.finished
                    _check_count(event.token.index, job)
                    job.add(event.token.token, event.token.logits)
            finally:
                asking.cancel()
                call.cancel()
                _settle(accepted, False)  # gRPC leaves the pieces of a call that is over waiting
        nothing = grpc.aio.Metadata()  # the stream ended well, but without its last event
        raise grpc.aio.AioRpcError(Status.UNAVAILABLE, nothing, nothing, "the answer broke off")

    async def _pieces(
        self, job: Job, sent: Sent, accepted: asyncio.Future[bool]
    ) -> AsyncIterator[pb.Piece]:
        """The request, for all that comes behind the tokens that the job has.

        Its start, then the rest once the agent takes it; see ``service.accepting``.
        """
        start = pb.Start(id=self.id, bytes=len(self.data), sha256=self.sha256)
        if job.tokens:
            start.have, start.so_far = len(job.tokens), digest_of(job.tokens)
        pieces = pieces_of(self.data, start)
        yield next(pieces)
        if not await accepted:
            return
        for piece in pieces:
            yield piece
        sent.at_s = now_s()

    def _judge(self, agent: AgentLink, job: Job, error: grpc.aio.AioRpcError) -> None:
        """Go on with the next agent, or raise what the user is told."""
        code, details = error.code(), error.details() or "no reason given"
        refusal = Refusal.told(details, error.trailing_metadata()) or RefusedError(code, details)
        if isinstance(refusal, Refusal) and refusal.reason != "draining":
            self._refusal = refusal  # it is up, and says no: another may say yes
        elif code in _LOST:
            agent.lost(details)
            self.metrics.moved(agent.address)
        elif code is Status.RESOURCE_EXHAUSTED or (code is Status.ABORTED and not job.tokens):
            self._refusal = refusal
        else:
            raise refusal


def _not_taking(agents: list[AgentLink]) -> RefusedError:
    told = [agent.status for agent in agents if agent.status]
    if all(status.draining for status in told):
        return RefusedError(Status.UNAVAILABLE, "no edge agent answers")
    reasons = sorted({status.why_not for status in told})
    return Refusal("queue-full", f"no edge agent takes tasks: {'; '.join(reasons)}")


def _check_count(told: int, job: Job) -> None:
    """No token twice, and none left out."""
    if told != len(job.tokens):
        message = f"the edge agent told of {told} tokens, {len(job.tokens)} came"
        raise RefusedError(Status.DATA_LOSS, message)


async def _until_accepted(call: Any, accepted: asyncio.Future[bool]) -> None:
    """A call that is refused ends by itself."""
    with suppress(grpc.aio.AioRpcError):
        if ACCEPTED in await call.initial_metadata():
            _settle(accepted, True)


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _evidence(finished: pb.Finished) -> str:
    """Of the latency of an answer: measured only if all of it was."""
    return next((run.evidence for run in finished.runs if run.evidence != "measured"), "measured")
