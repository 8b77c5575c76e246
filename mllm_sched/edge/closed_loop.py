"""The loop of an agent: ask the scheduler, run the device, tell the scheduler.

One call of the encoder after another, in one thread. The journal has each decision before the
encoder starts, and each measurement before anybody is told of it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from mllm_sched.arms import Arm, Factor, Level
from mllm_sched.devices.base import Encoded, ModelDevice
from mllm_sched.devices.model_encoders import Prepared
from mllm_sched.edge.journal import JournalError
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.logs import say
from mllm_sched.edge.monitor import Metrics
from mllm_sched.pipeline.jobs import RefusedError
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Part
from mllm_sched.schedulers import Decision
from mllm_sched.tasks import Task

log = logging.getLogger(__name__)
TRIES = 2  # arms that a task is tried on before it fails
PAUSE_S = 0.2  # before the journal is tried again


class EncodingFailed(RefusedError):
    """No arm that was tried encoded the item."""

    def __init__(self, why: str) -> None:
        super().__init__(grpc.StatusCode.INTERNAL, f"encoding failed: {why}")


@dataclass(frozen=True, eq=False)
class EncodingJob:
    """One item to encode."""

    task: str  # its key in the journal: user, request, place
    user: str
    prepared: Prepared
    ends_s: float = math.inf  # until when its user waits, on ``time.monotonic``


@dataclass(frozen=True, eq=False)
class EncodedJob:
    """The features of an item, and how they were made."""

    part: Part
    run: pb.Run


class ClosedLoop:
    """The loop of one device, within ``limit_s`` on the latency of encoding."""

    def __init__(
        self,
        name: str,
        device: ModelDevice,
        learner: Learner,
        limit_s: float,
        metrics: Metrics,
    ) -> None:
        self.name, self.device, self.learner = name, device, learner
        self.limit_s, self.metrics = limit_s, metrics
        self._encoders = {takes: encoder for encoder, takes in device.modalities.items()}
        self.closing = threading.Event()  # once set, nothing is waited for or tried again
        self.infeasible: dict[str, bool] = {}  # by modality, as last decided
        self._pending: Callable[[], None] | None = None  # a write that the journal has refused
        self._is_behind = False
        if learner.journal.stepped_back_s:
            metrics.alarm("clock")

    def encode(self, works: Sequence[EncodingJob]) -> list[EncodedJob]:
        """Encode items of one kind in one call, on an arm that the scheduler chooses.

        Raises JournalError if the decision or the measurement cannot be written by the last
        deadline, and EncodingFailed if the encoder failed on every arm that was tried.
        """
        ends_s = max(work.ends_s for work in works)
        arm = self.learner.arm_of(works[0].task) if len(works) == 1 else None
        available = [arm] if arm else None  # an answer that may have begun goes on alike
        tried: list[Arm] = []
        while True:
            decision = self._ask(works, available)
            encoded = self._run(decision.arm, works)
            self._raise_alarms(encoded)
            self._pending = partial(self._tell, decision, encoded, works)
            self._write_until(ends_s)
            if encoded.parts:
                return self._done(works, decision.arm, encoded)
            tried.append(decision.arm)
            is_over = self.closing.is_set() or time.monotonic() > ends_s
            if is_over or len(tried) == TRIES:
                raise EncodingFailed(encoded.failed)
            available = [arm for arm in self.device.space if arm not in tried] or None

    def write_pending(self) -> None:
        """Write what the last task took, if it is not written yet; JournalError if it cannot be."""
        if self._pending:
            self._pending()
            self._pending = None

    def _write_until(self, ends_s: float) -> None:
        """Write it, waiting for a journal that is full or locked."""
        while True:
            try:
                return self.write_pending()
            except JournalError:
                self.metrics.alarm("journal")
                is_over = time.monotonic() + PAUSE_S > ends_s
                if is_over or self.closing.wait(PAUSE_S):
                    raise

    def _ask(self, works: Sequence[EncodingJob], available: Sequence[Arm] | None) -> Decision:
        modality, contexts = works[0].prepared.modality, self.learner.scheduler.contexts
        given: dict[str, Level] = {"modality": modality, "batch": len(works)}
        context = {name: given[name] for name in contexts.names} if contexts else None
        try:
            self.write_pending()
            decision = self.learner.ask(
                [work.task for work in works],
                context=context,
                available=available,
                facts=self._facts(works),
            )
        except JournalError:
            self.metrics.alarm("journal")
            raise
        if len(works) == 1:  # more at a time need not be
            self.infeasible[modality] = decision.infeasible
        self.metrics.decided(decision, modality)
        return decision

    def _run(self, arm: Arm, works: Sequence[EncodingJob]) -> Encoded:
        modality = works[0].prepared.modality
        task = Task(modality, self._encoders[modality], size=len(works))
        try:
            return self.device.run(arm, task, [work.prepared for work in works])
        except Exception as error:  # whatever it is, the decision must not stay open
            say(log, "device-raised", "error", trace=True, arm=str(arm))
            evidence = self.device.evidence, self.device.energy_evidence
            why = f"{type(error).__name__}: {error}"
            return Encoded(arm, task, math.nan, math.nan, *evidence, why, cause="raised")

    def _raise_alarms(self, encoded: Encoded) -> None:
        if encoded.cause == "meter":
            self.metrics.alarm("meter")
        if encoded.cause in ("crashed", "hung"):
            self.metrics.alarm("worker")
        if encoded.behind_s:
            self.metrics.alarm("behind")
        if encoded.behind_s and not self._is_behind:
            why = "this machine is slower than what it emulates; latencies hold, the time does not"
            say(log, "behind", "warning", behind_s=encoded.behind_s, why=why)
        self._is_behind = encoded.behind_s > 0

    def _tell(self, decision: Decision, encoded: Encoded, works: Sequence[EncodingJob]) -> None:
        """Into the journal, then into the scheduler, then into the metrics."""
        before, modality = self.learner.scheduler.changes, works[0].prepared.modality
        try:
            self._learn(decision, encoded, works)
        except ValueError as error:
            say(log, "measurement-refused", "error", arm=str(decision.arm), why=str(error))
            with suppress(ValueError):  # it was written after all, though the journal denied it
                self.learner.tell(decision.id, failed=str(error))
        if encoded.parts:
            took = encoded.latency_s, encoded.energy_j / len(works), self.limit_s
            evidence = self.device.evidence, self.device.energy_evidence
            for _ in works:
                self.metrics.measured(decision.arm, modality, *took, *evidence)
        else:
            self.metrics.failed(decision.arm, encoded.cause)
        if self.learner.scheduler.changes > before:
            self.metrics.alarm("drift")
            say(log, "drift", "warning", arm=str(decision.arm), modality=modality)

    def _learn(self, decision: Decision, encoded: Encoded, works: Sequence[EncodingJob]) -> None:
        if encoded.cause == "meter":
            # Its latency alone says nothing of what an arm costs; the arm did nothing wrong.
            facts = {**self._facts(works), "latency_s": encoded.latency_s}
            self.learner.cancel(decision.id, f"the meter is gone: {encoded.failed}", facts)
        elif encoded.failed and self.closing.is_set():  # whoever ends the process ends the encoder
            self.learner.cancel(decision.id, f"the agent ends: {encoded.failed}")
        elif encoded.hung_s:
            above = {"latency_s": encoded.hung_s}
            self.learner.tell(decision.id, above=above, facts={"failed": encoded.failed})
        elif encoded.failed:
            self.learner.tell(decision.id, failed=encoded.failed)
        else:
            energy_j = encoded.energy_j / len(works)
            self.learner.tell(decision.id, latency_s=encoded.latency_s, energy_j=energy_j)

    def _facts(self, works: Sequence[EncodingJob]) -> dict[str, Any]:
        modality = works[0].prepared.modality
        users = {work.user for work in works}
        return {
            "modality": modality,
            "encoder": self._encoders[modality],
            "batch": len(works),
            "user": users.pop() if len(users) == 1 else "several",
            "evidence": self.device.evidence,
            "energy_evidence": self.device.energy_evidence,
            "limit_s": self.limit_s,
        }

    def _done(self, works: Sequence[EncodingJob], arm: Arm, encoded: Encoded) -> list[EncodedJob]:
        run = pb.Run(
            agent=self.name,
            arm=str(arm),
            latency_s=encoded.latency_s,
            energy_j=0.0 if math.isnan(encoded.energy_j) else encoded.energy_j / len(works),
            evidence=self.device.evidence,
            energy_evidence=self.device.energy_evidence,
        )
        return [EncodedJob(part, run) for part in encoded.parts]


def contexts_of(modalities: Sequence[str], batches: Sequence[int]) -> list[Factor]:
    """What a decision is given beside the arms: the modality, and how many items wait together.

    Left out are those that can have one value only.
    """
    factors = []
    if len(modalities) > 1:
        factors.append(Factor("modality", list(modalities)))
    if len(batches) > 1:
        factors.append(Factor("batch", list(batches), log=True))
    return factors
