"""An edge agent: takes tasks of users, encodes them on its device, has the LLM server answer.

    user -> queue -> scheduler.ask -> device -> journal, scheduler.tell -> LLM server -> user

By function: ``UserService.Generate`` (service), ``Agent._serve`` (here), ``EncoderStage.encode``,
which waits in the queue until ``EncoderStage.dispatch`` serves it (encoder_stage),
``ClosedLoop.encode`` (closed_loop), ``Learner.ask``, ``device.run``, ``Learner.tell`` (learner),
``Answering.relay`` (answering).

The end of an answer is sent only when what its encoding took is in the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial

import grpc

from mllm_sched.devices.model_encoders import Prepared
from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import EncodedJob
from mllm_sched.edge.encoder_stage import EncoderStage, QueuedRequest
from mllm_sched.edge.journal import (
    AlreadyAnswered,
    AsyncJournal,
    Journal,
    JournalError,
    StoredAnswer,
)
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import Metrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import UserService, key_of, now_s
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.jobs import Job, RefusedError
from mllm_sched.pipeline.node_errors import NodeError
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.split import markers_of
from mllm_sched.pipeline.wire import Message, MismatchError, Rules, WireError, read_rest, unpack

log = logging.getLogger(__name__)
Status = grpc.StatusCode
PAUSE_S = 0.2  # before the journal is tried again
SERVER_SAYS = {  # what users are told of an LLM server that fails; the log has the rest
    Status.UNAVAILABLE: "the LLM server cannot be reached",
    Status.RESOURCE_EXHAUSTED: "the LLM server is busy",
    Status.DEADLINE_EXCEEDED: "the LLM server did not answer in time",
    Status.ABORTED: "the answer was made anew and begins differently; ask for all of it",
}


class Agent(UserService):
    """The service.

    ``stage`` encodes, ``answering`` has the LLM server answer, ``journal`` stores the answers; for
    the others see ``UserService``.
    """

    metrics: Metrics

    def __init__(
        self,
        name: str,
        stage: EncoderStage,
        answering: Answering,
        journal: Journal,
        users: Users,
        limits: Limits,
        security: Security,
        metrics: Metrics,
    ) -> None:
        super().__init__(users, limits, security, metrics)
        self.name, self.stage, self.answering = name, stage, answering
        self.journal = AsyncJournal(journal, self._journal_down)
        self.device = stage.loop.device
        self.half = self.device.encoders.half
        self.rules = Rules(self.half, ["input"], max_new_tokens=limits.new_tokens)

    @property
    def why_not(self) -> str:
        """Why no new task is taken; empty if it is."""
        return "the agent shuts down" if self.draining else self.journal.why_not

    def card(self) -> pb.Card:
        """What the agent takes: raw items of its model."""
        return pb.Card(
            model=self.half.identity,
            name=self.name,
            encoders=self.half.modalities,
            cuts=["input"],
            max_bytes=self.limits.bytes,
            max_new_tokens=self.limits.new_tokens,
            limit=self.limits.requests,
            boot=self.boot,
            markers=markers_of(self.half),
        )

    async def _finished(self, user: User, start: pb.Start) -> Job | None:
        """An answer of before a restart, from the journal."""
        try:
            stored = await self._stored(user.name, start.id, start.sha256)
        except JournalError as error:
            raise self._down(error) from error
        if stored is None:
            return None
        job = Job(start.sha256, now_s())
        for token in stored.tokens:
            job.add(token)
        job.end(pb.Finished.FromString(stored.finished))
        return job

    async def _stored(self, user: str, name: str, digest: bytes) -> StoredAnswer | None:
        stored = await self.journal.answer(user, name)
        if stored is not None and stored.digest != digest:
            message = f"request {name} was sent before, with other bytes"
            raise RefusedError(Status.ALREADY_EXISTS, message)
        return stored

    def _check_taking(self) -> None:
        super()._check_taking()
        if self.why_not:
            raise Refusal("journal", self.why_not)

    def _journal_down(self) -> None:
        self.stage.refuse_waiting(Refusal("journal", self.why_not))

    def _down(self, error: JournalError) -> Refusal:
        self.journal.failed(error)
        return Refusal("journal", self.why_not)

    async def _begin(
        self, user: User, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float
    ) -> Job:
        with self._take(user, start) as slot:
            self.stage.check_first(user, ends_s)
            self._hold(user, start.bytes, slot)
            async with slot.upload(ends_s):
                data, _ = await read_rest(pieces, start, self.limits.idle_s)
                message, prepared = await asyncio.to_thread(self._read, data, start)
            sizes = (tensor.nbytes for one in prepared for tensor in one.inputs.values())
            self._hold(user, max(0, sum(sizes) - start.bytes), slot)
            key, work = key_of(user, start), partial(self._serve, user, message, prepared)
            return self.jobs.launch(key, start.sha256, ends_s, slot, work)

    def _read(self, data: bytes, start: pb.Start) -> tuple[Message, tuple[Prepared, ...]]:
        """A message without its items, and the encoder's inputs; refuses what is not valid."""
        message = unpack(data, self.rules)
        if message.header.id != start.id:
            raise WireError(f"the message is of request {message.header.id}, not {start.id}")
        if message.header.logits:  # of a long prompt they are hundreds of megabytes
            raise MismatchError("logits are not relayed: ask a node for them")
        prepared = tuple(self.device.encoders.prepare(item) for item in message.items)
        layouts = [(one.modality, one.layout) for one in prepared]
        self.rules.check_length(message.prompt, layouts, message.header.max_new_tokens)
        return replace(message, items=()), prepared

    async def _serve(
        self, user: User, message: Message, prepared: Sequence[Prepared], job: Job
    ) -> None:
        request = QueuedRequest(f"{user.name}/{message.header.id}", user, prepared, job)
        try:
            async with job.in_time():
                done = await self.stage.encode(request)
                await self._answer(request, message, done)
        except TimeoutError:
            late = f"the deadline passed after {len(job.tokens)} tokens"
            self._refuse(job, RefusedError(Status.DEADLINE_EXCEEDED, late), "deadline")
        except Refusal as refusal:
            self._refuse(job, refusal, refusal.reason)
        except JournalError as error:
            self._refuse(job, self._down(error), "journal")
        except RefusedError as refused:
            self._refuse(job, refused, "failed")
        except NodeError as error:
            self._refuse(job, _server_refusal(error), "server")
        except Exception:
            say(log, "request-failed", "error", trace=True)
            failed = RefusedError(Status.INTERNAL, "the agent failed; see its log")
            self._refuse(job, failed, "failed")
        finally:
            self.answering.leave(request)

    def _refuse(self, job: Job, why: RefusedError, reason: str) -> None:
        job.end(failure=why)
        self.metrics.shed(reason)

    async def _answer(
        self, request: QueuedRequest, message: Message, done: Sequence[EncodedJob]
    ) -> None:
        """Relay the LLM server's answer; its end goes out once the journal has it."""
        begun_s, job = now_s(), request.job
        parts = [one.part for one in done]
        times, first_token_s = await self.answering.relay(message, parts, request.task, job)
        took_s = now_s() - begun_s
        self.stage.admission.answered(took_s)
        finished = pb.Finished(
            tokens=len(job.tokens),
            times=pb.Times(
                wait_s=request.queued_s + times.wait_s,
                encode_s=sum(one.run.latency_s for one in done),
                llm_s=times.llm_s,
            ),
            runs=[one.run for one in done],
        )
        job.end(await self._keep(request.user.name, message.header.id, job, finished))
        before_s = begun_s - request.came_s
        first_s = before_s + first_token_s if job.tokens else None
        self.metrics.answered(before_s + took_s, first_s, self.device.evidence)

    async def _keep(self, user: str, name: str, job: Job, finished: pb.Finished) -> pb.Finished:
        """Store the answer, trying until the deadline; its last message, or that stored before."""
        answer = list(job.tokens), finished.SerializeToString()
        while True:
            try:
                await self.journal.keep_answer(user, name, job.digest, *answer)
                return finished
            except AlreadyAnswered:
                stored = await self._stored(user, name, job.digest)
                if stored is None:
                    return finished
                if list(stored.tokens) != list(job.tokens):
                    raise RefusedError(Status.ABORTED, SERVER_SAYS[Status.ABORTED]) from None
                return pb.Finished.FromString(stored.finished)
            except JournalError:
                self.metrics.alarm("journal")
                await asyncio.sleep(PAUSE_S)

    async def holds(self, user: str, name: str) -> bool:
        """Whether a user's request is here, under way or answered."""
        if self.jobs.knows(f"{user}/{name}"):
            return True
        try:
            return await self.journal.answer(user, name) is not None
        except JournalError:  # one that cannot tell has it not
            return False

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what was begun; what waits for the journal gives up then."""
        await super().drain(grace_s)
        self.stage.loop.closing.set()

    def close(self) -> None:
        """Let what runs end, and give back what the parts hold."""
        self.stage.close()
        self.answering.close()
        self.journal.close()
        self.device.close()


def _server_refusal(error: NodeError) -> RefusedError:
    """What a user is told: no addresses, and nothing between the agent and its server."""
    say(log, "server-refused", "warning", code=error.code.name, why=str(error))
    if error.code in SERVER_SAYS:
        return RefusedError(error.code, SERVER_SAYS[error.code])
    return RefusedError(Status.INTERNAL, "the LLM server refused; see the agent's log")
