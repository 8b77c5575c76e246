"""An edge agent: takes tasks of users, encodes them on its device, has the LLM server answer.

    user -> queue -> scheduler.ask -> device -> journal, scheduler.tell -> LLM server -> user

The end of an answer is sent only when what its encoding took is in the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial

import grpc

from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import Done
from mllm_sched.edge.encoder_stage import EncoderStage, Pending
from mllm_sched.edge.journal import Journal, JournalError
from mllm_sched.edge.logs import say
from mllm_sched.edge.metrics import Metrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.runtime import Prepared
from mllm_sched.edge.service import UserService, key_of, now_s
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.jobs import Job, RefusedError
from mllm_sched.pipeline.limits import Limits
from mllm_sched.pipeline.node_errors import NodeError
from mllm_sched.pipeline.pieces import read_rest
from mllm_sched.pipeline.prompts import markers_of
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.security import Security
from mllm_sched.pipeline.wire import Message, unpack
from mllm_sched.pipeline.wire_header import WireError
from mllm_sched.pipeline.wire_rules import Rules

log = logging.getLogger(__name__)
Status = grpc.StatusCode
REST_S = 1.0  # after the journal refused a write, before another task is taken


class Agent(UserService):
    """The service.

    Parameters
    ----------
    name
        Of the agent.
    stage
        Encodes.
    answering
        Has the LLM server answer.
    journal
        Keeps what was answered.
    users, limits, security
        See ``UserService``.
    metrics
        Told of everything.
    """

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
        super().__init__(users, limits, security)
        self.name, self.stage, self.answering = name, stage, answering
        self.journal, self.metrics = journal, metrics
        self.runtime = stage.loop.runtime
        self.rules = Rules(self.runtime.half, ["input"], max_new_tokens=limits.new_tokens)
        self._journal_rests_until = 0.0

    @property
    def why_not(self) -> str:
        """Why no new task is taken; empty if it is."""
        if self.draining:
            return "the agent shuts down"
        if now_s() < self._journal_rests_until:
            return "the journal cannot be written"
        return ""

    def card(self) -> pb.Card:
        """What the agent takes: raw items of its model."""
        return pb.Card(
            model=self.runtime.identity,
            name=self.name,
            encoders=self.runtime.modalities,
            cuts=["input"],
            max_bytes=self.limits.bytes,
            max_new_tokens=self.limits.new_tokens,
            limit=self.limits.requests,
            boot=self.boot,
            markers=markers_of(self.runtime.half),
        )

    async def _finished(self, user: User, start: pb.Start) -> Job | None:
        """An answer of before a restart, from the journal."""
        stored = await asyncio.to_thread(self.journal.answer, user.name, start.id)
        if stored is None:
            return None
        if stored.digest != start.sha256:
            message = f"request {start.id} was sent before, with other bytes"
            raise RefusedError(Status.ALREADY_EXISTS, message)
        job = Job(start.sha256, now_s())
        for token in stored.tokens:
            job.add(token)
        job.end(pb.Finished.FromString(stored.finished))
        return job

    async def _begin(
        self, user: User, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float
    ) -> Job:
        with self._take(user, start) as slot:
            if self.why_not:
                raise Refusal("journal", self.why_not)
            self.stage.check_first(user, ends_s)
            async with slot.upload(ends_s):
                data, _ = await read_rest(pieces, start, self.limits.idle_s)
                message, prepared = await asyncio.to_thread(self._read, data, start)
            pending = Pending(key_of(user, start), user, prepared, ends_s)
            work = partial(self._serve, pending, message, start.sha256)
            return self.jobs.launch(pending.task, start.sha256, ends_s, slot, work)

    def _read(self, data: bytes, start: pb.Start) -> tuple[Message, tuple[Prepared, ...]]:
        """A message, and what the encoder takes; refused here is what is wrong, or too long."""
        message = unpack(data, self.rules)
        if message.header.id != start.id:
            raise WireError(f"the message is of request {message.header.id}, not {start.id}")
        prepared = tuple(self.runtime.prepare(item) for item in message.items)
        layouts = [(one.modality, one.layout) for one in prepared]
        wanted = message.header
        self.rules.check_length(
            message.prompt, layouts, wanted.max_new_tokens, logits=wanted.logits
        )
        return message, prepared

    async def _serve(self, pending: Pending, message: Message, digest: bytes, job: Job) -> None:
        """The job of a request: encode, answer, or say why not."""
        try:
            async with job.in_time():
                done = await self.stage.encode(pending) if pending.prepared else []
                await self._answer(pending, message, digest, done, job)
        except TimeoutError:
            late = f"the deadline passed after {len(job.tokens)} tokens"
            self._refuse(job, RefusedError(Status.DEADLINE_EXCEEDED, late), "deadline")
        except Refusal as refusal:
            self._refuse(job, refusal, refusal.reason)
        except JournalError as error:
            self._journal_rests_until = now_s() + REST_S
            self._refuse(job, Refusal("journal", f"the journal: {error}"), "journal")
        except RefusedError as refused:
            self._refuse(job, refused, "failed")
        except NodeError as error:
            self._refuse(job, RefusedError(error.code, f"the LLM server: {error}"), "server")
        except Exception:
            say(log, "request-failed", "error", trace=True)
            failed = RefusedError(Status.INTERNAL, "the agent failed; see its log")
            self._refuse(job, failed, "failed")

    def _refuse(self, job: Job, why: RefusedError, reason: str) -> None:
        job.end(failure=why)
        self.metrics.shed(reason)

    async def _answer(
        self, pending: Pending, message: Message, digest: bytes, done: Sequence[Done], job: Job
    ) -> None:
        """Relay the LLM server's answer; its end goes out once the journal has it."""
        begun_s = now_s()
        parts = [one.part for one in done]
        relayed = await self.answering.relay(message, parts, pending.task, job, pending.ends_s)
        took_s = now_s() - begun_s
        self.stage.admission.answered(took_s)
        finished = pb.Finished(
            tokens=len(job.tokens),
            times=pb.Times(
                wait_s=pending.queued_s + relayed.times.wait_s,
                encode_s=sum(one.run.latency_s for one in done),
                llm_s=relayed.times.llm_s,
            ),
            runs=[one.run for one in done],
        )
        await self._keep(pending.user.name, message.header.id, digest, job, finished)
        job.end(finished)
        before_s = begun_s - pending.came_s
        first_s = before_s + relayed.first_token_s if job.tokens else None
        self.metrics.answered(before_s + took_s, first_s, self.runtime.evidence)

    async def _keep(
        self, user: str, name: str, digest: bytes, job: Job, finished: pb.Finished
    ) -> None:
        """In the journal; one that cannot be written is tried until the deadline."""
        answer = list(job.tokens), finished.SerializeToString()
        while True:
            try:
                return await asyncio.to_thread(
                    self.journal.keep_answer, user, name, digest, *answer
                )
            except JournalError:
                self.metrics.alarm("journal")
                self._journal_rests_until = now_s() + REST_S
                await asyncio.sleep(REST_S / 5)

    async def holds(self, user: str, name: str) -> bool:
        """Whether a user's request is here, under way or answered."""
        if self.jobs.knows(f"{user}/{name}"):
            return True
        return await asyncio.to_thread(self.journal.answer, user, name) is not None

    def close(self) -> None:
        """Let what runs end, and give back what the parts hold."""
        self.stage.close()
        self.answering.close()
        self.runtime.close()
