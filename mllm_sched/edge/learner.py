"""A scheduler whose every decision and measurement is in the journal before it counts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.edge.journal import Event, Journal, JournalError
from mllm_sched.edge.journal_schema import Snapshot, broken, finite
from mllm_sched.edge.recovery import (
    INTERRUPTED,
    RecoveryState,
    begun_with,
    lesson,
    play,
    relearned,
    restored,
)
from mllm_sched.edge.scheduler_spec import SchedulerSpec
from mllm_sched.schedulers import Decision, Scheduler
from mllm_sched.schedulers.base import Context

__all__ = ["Learner", "SchedulerSpec"]

EXPLAINED = ("reason", "certified", "p_feasible", "safe_arms", "infeasible")  # of a decision
TWICE = "interrupted twice"  # how an arm failed that ended the process, or the machine

log = logging.getLogger(__name__)


class Learner:
    """A scheduler and its journal.

    At start it is rebuilt to the last bit: from the last snapshot, and by doing again what the
    journal says happened since. If this version of the rule chooses otherwise than the one that
    wrote the journal, or cannot read its snapshot, the log says so, and a new scheduler learns from
    all measurements that are still there. Decisions that were open are cancelled; their tasks are
    in ``repeats``. A task that was interrupted twice on one arm counts as failed there: what takes
    the machine down must be learned as well.

    Where the journal cannot be written, the call raises ``JournalError`` and nothing has happened:
    what the scheduler did meanwhile is undone before its next use. Calls go on as soon as the
    journal can be written again.

    Parameters
    ----------
    journal
        Of this scheduler alone; it is closed by whoever opened it, after ``close``.
    spec
        What makes the scheduler. A journal of another one is refused, but for other values of the
        same limits: these are changed, as by ``change_limits``.
    snapshot_every
        Events between two snapshots.

    Attributes
    ----------
    scheduler
        To be looked at; ask and tell it through this class alone.

    Raises
    ------
    ValueError
        If the journal belongs to another scheduler.
    JournalError
        See its ``reason``.

    Examples
    --------
    >>> import tempfile
    >>> from mllm_sched.arms import ArmSpace, Factor
    >>> spec = SchedulerSpec("ucb", ArmSpace([Factor("threads", [1, 2])]), {"latency_s": 0.2})
    >>> with tempfile.TemporaryDirectory() as folder, Journal(f"{folder}/journal.db") as journal:
    ...     learner = Learner(journal, spec)
    ...     decision = learner.ask(["ada/1/0"])
    ...     learner.tell(decision.id, latency_s=0.1, energy_j=2.0)
    ...     [event.kind for event in journal.events()]
    ['started', 'decided', 'measured']
    """

    def __init__(
        self, journal: Journal, spec: SchedulerSpec, *, snapshot_every: int = 1000
    ) -> None:
        self.journal, self.spec, self.snapshot_every = journal, spec, snapshot_every
        self.scheduler: Scheduler
        self._standing = RecoveryState()
        self._stale = False  # whether memory may be ahead of the journal
        self._last = self._covered = 0  # events: written, and in the last snapshot
        with journal.lock:
            known = begun_with(journal, spec)
            self._rebuild()
            self._write("started", {"scheduler": spec.name})
            self._interrupt()
            if known["limits"] != dict(spec.limits):
                log.warning("limits %s instead of %s", dict(spec.limits), known["limits"])
                self.change_limits(spec.limits)
                journal.set_meta("spec", json.dumps(spec.words()))

    @property
    def repeats(self) -> dict[str, Arm]:
        """Arms of tasks that were begun and not measured when their process died, by task.

        Asked for again, such a task may run on the same arm, so that its answer begins as before.
        """
        arms = self.spec.space
        return {task: arms[index] for task, (index, _) in self._standing.repeats.items()}

    @property
    def has_learned(self) -> bool:
        """Whether anything was measured, or taken over from a table."""
        return self.scheduler.steps > 0 or self._standing.warm

    def arm_of(self, task: str) -> Arm | None:
        """The arm that a task ran on before, if its answer may have begun; else None.

        That is one of ``repeats``, or of the tasks measured last, as long as answers are kept.
        """
        since_s = self.journal.now_s() - self.journal.keep_answers_s
        index = self._standing.arm_of(task, since_s)
        return None if index is None else self.spec.space[index]

    def ask(
        self,
        tasks: Sequence[str],
        *,
        context: Context | None = None,
        available: Iterable[Arm] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Decision:
        """The arm for some tasks, which run as one; see ``Scheduler.ask``.

        Parameters
        ----------
        tasks
            A name for each, ``user/id/place``.
        context, available
            See ``Scheduler.ask``.
        facts
            See ``tell``: what is known of them already.
        """
        space = self.spec.space
        arms = None if available is None else sorted({space.index(arm) for arm in available})
        context = dict(context) if context else None
        with self._ready(), self._whole():
            now_s = self.journal.now_s()
            decision = self.scheduler.ask(
                context, None if arms is None else [space[index] for index in arms], now_s
            )
            body = {
                **{"tasks": list(tasks), "arm": decision.arm.index},
                **{"context": context, "available": arms, "facts": finite(facts or {})},
                "repeated": self._standing.repeated(tasks, decision.arm.index),
                **{name: getattr(decision, name) for name in EXPLAINED},
            }
            self._write("decided", body, decision.id, now_s)
        return decision

    def tell(
        self,
        decision_id: int,
        *,
        failed: str = "",
        above: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
        **quantities: float,
    ) -> None:
        """What the arm of that decision took; see ``Scheduler.tell``.

        Parameters
        ----------
        decision_id, failed, above, **quantities
            See ``Scheduler.tell``.
        facts
            What else a row of the table needs, by the names of its columns: ``modality``,
            ``encoder``, ``evidence``, and if they are not as usual ``size``, ``batch``, ``user``,
            ``energy_evidence``, ``limit_s``. Whatever else is given is kept as well.
        """
        with self._ready():
            self.scheduler.would_learn(decision_id, failed=failed, above=above, **quantities)
            begun = self._standing.open[decision_id]
            limit_s = self.scheduler.limits.get("latency_s")
            body = {
                "told": {"failed": failed, "above": above, "quantities": finite(quantities)},
                "levels": dict(self.spec.space[begun["arm"]].levels),
                "facts": finite({"limit_s": limit_s, **begun.get("facts", {}), **(facts or {})}),
                **{name: begun[name] for name in ("context", *EXPLAINED)},
            }
            with self._whole():
                play(self.scheduler, self._write("measured", body, decision_id))

    def cancel(self, decision_id: int, why: str, facts: Mapping[str, Any] | None = None) -> None:
        """The arm of that decision never ran; ``facts`` are kept with the reason."""
        with self._ready():
            self.scheduler.would_learn(decision_id, failed=why)
            body = {"why": why, "facts": finite(facts or {})}
            with self._whole():
                play(self.scheduler, self._write("cancelled", body, decision_id))

    def warm_start(self, table: pd.DataFrame, scatter: float = 0.0) -> None:
        """Learn from measurements made before, or elsewhere; see ``Scheduler.warm_start``."""
        self._try("warm-start", lesson(self.scheduler, table, scatter))

    def change_limits(self, limits: Mapping[str, float]) -> None:
        """Other limits on the same quantities, from the next decision on."""
        self._try("limits", {"limits": dict(limits)})

    def close(self) -> None:
        """Leave a snapshot, so that the next start has nothing to do again."""
        with self._ready():
            self._snapshot()

    def _try(self, kind: str, body: Mapping[str, Any]) -> None:
        """Let the scheduler refuse what it cannot take before it is written."""
        with self._ready(), self._whole():
            now_s = self.journal.now_s()
            play(self.scheduler, Event(0, now_s, kind, None, body))
            self._write(kind, body, now_s=now_s)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """A block that nobody else is in, and that begins with memory as the journal has it."""
        with self.journal.lock:
            if self._stale:
                self.journal.append("resumed", {})  # raises as long as it cannot be written
                self._rebuild()
            yield

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A block that changes memory and journal alike; if it fails, memory is built anew."""
        self._stale = True
        yield
        self._stale = False
        if self._last - self._covered >= self.snapshot_every:
            try:
                self._snapshot()
            except JournalError as error:  # the events it would cover stay, so nothing is lost
                log.warning("no snapshot after event %d: %s", self._last, error)

    def _write(
        self,
        kind: str,
        body: Mapping[str, Any],
        decision: int | None = None,
        now_s: float | None = None,
    ) -> Event:
        event = self.journal.append(kind, body, decision, now_s)
        self._standing.follow(event)
        self._last = event.id
        return event

    def _snapshot(self) -> None:
        standing = self._standing.words()
        self.journal.keep_snapshot(Snapshot(self._last, self.scheduler.to_bytes(), standing))
        self._covered = self._last

    def _rebuild(self) -> None:
        """Memory as the journal has it."""
        began_s, snapshot = time.perf_counter(), self.journal.snapshot()
        if snapshot is None:
            raise broken(self.journal.path, "it has no snapshot")
        events = list(self.journal.events(snapshot.after))
        self._standing = RecoveryState.of(snapshot.standing)
        self._covered = self._last = snapshot.after
        for event in events:
            self._standing.follow(event)
            self._last = event.id
        try:
            self.scheduler = restored(snapshot, events)
        except (ValueError, ArithmeticError) as error:
            self._relearn(error)
        self._stale = False
        took_s = time.perf_counter() - began_s
        log.info("%s: %d events done again in %.2f s", self.journal.path, len(events), took_s)

    def _relearn(self, error: Exception) -> None:
        """A new scheduler from all measurements, where the old one cannot be had again."""
        log.warning(
            "journal %s: cannot be done again: %s. A new scheduler learns from its measurements",
            self.journal.path,
            error,
        )
        for decision in list(self._standing.open):
            self._write("cancelled", {"why": INTERRUPTED, "facts": {}}, decision)
        self.scheduler, next_id = relearned(self.spec, self.journal, self._standing.limits)
        self._write("relearned", {"why": str(error), "next": next_id})
        self._snapshot()

    def _interrupt(self) -> None:
        """End what the last process did not live to measure."""
        for decision, begun in list(self._standing.open.items()):
            if begun.get("repeated"):
                self.tell(decision, failed=TWICE)
            else:
                self.cancel(decision, INTERRUPTED)
        self._standing.forget(self.journal.now_s() - self.journal.keep_answers_s)
