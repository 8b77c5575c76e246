"""One device and its scheduler: asks for an arm, encodes on it, tells what that took.

Everything here happens in one thread, one call of the encoder after another. The journal has each
decision before the encoder starts, and each measurement before anybody is told of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from mllm_sched.arms import Arm, Factor, Level
from mllm_sched.edge.journal import JournalError
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.logs import say
from mllm_sched.edge.metrics import Metrics
from mllm_sched.edge.runtime import Encoded, Prepared, Runtime
from mllm_sched.pipeline.jobs import RefusedError
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Part
from mllm_sched.schedulers.decision import Decision

log = logging.getLogger(__name__)
TRIES = 2  # arms that a task is tried on before it fails
PAUSE_S = 0.2  # before the journal is tried again


class EncodingFailed(RefusedError):
    """No arm that was tried encoded the item."""

    def __init__(self, why: str) -> None:
        super().__init__(grpc.StatusCode.INTERNAL, f"encoding failed: {why}")


@dataclass(frozen=True, eq=False)
class Work:
    """One item to encode.

    Attributes
    ----------
    task
        Its key in the journal: user, request, place.
    ends_s
        Until when its user waits, on ``time.monotonic``.
    """

    task: str
    user: str
    prepared: Prepared
    ends_s: float = field(default=math.inf)


@dataclass(frozen=True, eq=False)
class Done:
    """The features of an item, and how they were made."""

    part: Part
    run: pb.Run


class ClosedLoop:
    """The loop of one device.

    Parameters
    ----------
    name
        Of the agent.
    runtime
        Encodes.
    learner
        Chooses, and remembers.
    limit_s
        On the latency of encoding.
    cut
        Of the features.
    metrics
        Told of everything.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        learner: Learner,
        limit_s: float,
        cut: str,
        metrics: Metrics,
    ) -> None:
        self.name, self.runtime, self.learner = name, runtime, learner
        self.limit_s, self.cut, self.metrics = limit_s, cut, metrics
        self.infeasible: dict[str, bool] = {}  # by modality, as the last decision had it

    def encode(self, works: Sequence[Work]) -> list[Done]:
        """Encode items of one kind in one call, on an arm that the scheduler chooses.

        Raises
        ------
        JournalError
            If the decision, or what it took, cannot be written before the last user has gone.
        EncodingFailed
            If the encoder failed on every arm that was tried.
        """
        available = self._interrupted(works)
        tried: list[Arm] = []
        while True:
            decision = self._ask(works, available)
            encoded = self._run(decision.arm, works)
            self._tell(decision, encoded, works)
            if not encoded.failed:
                return self._done(works, decision.arm, encoded)
            tried.append(decision.arm)
            if len(tried) == TRIES or time.monotonic() > _last(works):
                raise EncodingFailed(encoded.failed)
            available = [arm for arm in self.runtime.space if arm not in tried] or None

    def _interrupted(self, works: Sequence[Work]) -> list[Arm] | None:
        """The arm of a task that was under way when the agent died, so that its answer is the same.

        A batch is not what it was, and its answers may differ in any case.
        """
        arm = self.learner.repeats.get(works[0].task) if len(works) == 1 else None
        return [arm] if arm else None

    def _ask(self, works: Sequence[Work], available: Sequence[Arm] | None) -> Decision:
        modality = works[0].prepared.modality
        tasks = [work.task for work in works]
        decision = self.learner.ask(tasks, context=self._context(works), available=available)
        self.infeasible[modality] = decision.infeasible
        self.metrics.decided(decision, modality)
        return decision

    def _context(self, works: Sequence[Work]) -> Mapping[str, Level] | None:
        given: dict[str, Level] = {"modality": works[0].prepared.modality, "batch": len(works)}
        contexts = self.learner.scheduler.contexts
        return {name: given[name] for name in contexts.names} if contexts else None

    def _run(self, arm: Arm, works: Sequence[Work]) -> Encoded:
        return self.runtime.encode(arm, [work.prepared for work in works], self.cut)

    def _tell(self, decision: Decision, encoded: Encoded, works: Sequence[Work]) -> None:
        """Write and learn what it took. A journal that is full or locked is waited for."""
        modality = works[0].prepared.modality
        if encoded.meter_lost:
            self.metrics.alarm("meter")
        if encoded.failed:
            self.metrics.failed(decision.arm, _class_of(encoded))
        else:
            for _ in works:
                self.metrics.measured(
                    decision.arm,
                    modality,
                    encoded.latency_s,
                    encoded.energy_j,
                    self.limit_s,
                    *(self.runtime.evidence, self.runtime.energy_evidence),
                )
        before = self.learner.scheduler.changes
        self._patiently(lambda: self._learn(decision, encoded, works), _last(works))
        if self.learner.scheduler.changes > before:
            self.metrics.alarm("drift")
            say(log, "drift", "warning", arm=str(decision.arm), modality=modality)

    def _learn(self, decision: Decision, encoded: Encoded, works: Sequence[Work]) -> None:
        facts = self._facts(works)
        if encoded.hung_s:
            above = {"latency_s": encoded.hung_s}
            self.learner.tell(decision.id, above=above, facts={**facts, "failed": encoded.failed})
        elif encoded.failed:
            self.learner.tell(decision.id, failed=encoded.failed, facts=facts)
        elif encoded.meter_lost:
            # Its latency alone teaches no rule of what an arm costs; the arm did nothing wrong.
            facts["latency_s"] = encoded.latency_s
            self.learner.cancel(decision.id, f"the meter is gone: {encoded.meter_lost}", facts)
        else:
            self.learner.tell(
                decision.id, latency_s=encoded.latency_s, energy_j=encoded.energy_j, facts=facts
            )

    def _facts(self, works: Sequence[Work]) -> dict[str, Any]:
        """What a row of the journal says beside arm, latency and energy."""
        modality = works[0].prepared.modality
        users = {work.user for work in works}
        return {
            "modality": modality,
            "encoder": self.runtime.encoder(modality),
            "batch": len(works),
            "user": users.pop() if len(users) == 1 else "several",
            "evidence": self.runtime.evidence,
            "energy_evidence": self.runtime.energy_evidence,
            "limit_s": self.limit_s,
        }

    def _patiently(self, write: Callable[[], None], ends_s: float) -> None:
        """Write; again and again until somebody's patience is over."""
        while True:
            try:
                return write()
            except JournalError:
                self.metrics.alarm("journal")
                if time.monotonic() + PAUSE_S > ends_s:
                    raise
                time.sleep(PAUSE_S)

    def _done(self, works: Sequence[Work], arm: Arm, encoded: Encoded) -> list[Done]:
        run = pb.Run(
            agent=self.name,
            arm=str(arm),
            latency_s=encoded.latency_s,
            energy_j=0.0 if math.isnan(encoded.energy_j) else encoded.energy_j,
            evidence=self.runtime.evidence,
            energy_evidence=self.runtime.energy_evidence,
        )
        assert len(encoded.parts) == len(works)
        return [Done(part, run) for part in encoded.parts]


def _class_of(encoded: Encoded) -> str:
    """What kind of failure it was, for the metrics."""
    if encoded.hung_s:
        return "hung"
    crashed = "crashed" in encoded.failed
    return "crashed" if crashed else "memory" if "memory" in encoded.failed else "raised"


def _last(works: Sequence[Work]) -> float:
    """When the last of the users has gone."""
    return max(work.ends_s for work in works)


def contexts_of(modalities: Sequence[str], batches: Sequence[int]) -> list[Factor]:
    """What a decision is given beside the arms: the modality, and how many items wait together.

    Examples
    --------
    >>> [factor.name for factor in contexts_of(["image", "audio"], [1])]
    ['modality']
    """
    factors = []
    if len(modalities) > 1:
        factors.append(Factor("modality", list(modalities)))
    if len(batches) > 1:
        factors.append(Factor("batch", list(batches), log=True))
    return factors
