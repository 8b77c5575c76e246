"""A scheduler whose every decision and measurement is in the journal before it counts.

After a restart it is rebuilt to the last bit, from its last snapshot and the events since.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pandas as pd

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.edge.journal import Event, Journal, JournalError, Snapshot, read_spec, table_of
from mllm_sched.schedulers import Decision, Scheduler, make_scheduler
from mllm_sched.schedulers.base import Context
from mllm_sched.schedulers.persistence import factor_words, plain

EXPLAINED = ("reason", "certified", "p_feasible", "safe_arms", "infeasible")  # of a decision
INTERRUPTED = "interrupted"  # why a decision was cancelled whose process ended
TWICE = "interrupted twice"  # how an arm failed that ended the process, or the machine
MEASURED = 1000  # tasks measured last, whose arms are remembered
SNAPSHOT_EVERY = 1000  # events
LONGEST = 60  # characters of a setting, in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerSpec:
    """The arguments of ``make_scheduler``, with a number as ``rng``: to be stored and compared.

    Examples
    --------
    >>> space = ArmSpace([Factor("threads", [1, 2])])
    >>> spec = SchedulerSpec("ucb", space, {"latency_s": 0.2})
    >>> other = SchedulerSpec("ucb", space, {"latency_s": 0.3}, rng=1)
    >>> differences(spec.to_json(), other.to_json())
    ['rng: 0, here 1']
    """

    name: str
    space: ArmSpace
    limits: Mapping[str, float]
    seeds: Sequence[Arm] = ()
    rng: int = 0
    contexts: Sequence[Factor] = ()
    objective: str = "energy_j"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Scheduler:
        """A new scheduler; ValueError and TypeError as of ``make_scheduler``."""
        given = {name: value for name, value in vars(self).items() if name != "settings"}
        return make_scheduler(**given, **self.settings)

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types."""
        words = {
            "name": self.name,
            "factors": [factor_words(factor) for factor in self.space.factors],
            "limits": dict(self.limits),
            "seeds": [self.space.index(arm) for arm in self.seeds],
            "rng": self.rng,
            "contexts": [factor_words(factor) for factor in self.contexts],
            "objective": self.objective,
            "settings": plain(self.settings),
        }
        done: dict[str, Any] = json.loads(json.dumps(words, default=lambda array: array.tolist()))
        return done


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two results of ``SchedulerSpec.to_json`` different schedulers, in short phrases.

    Other values of the same limits do not: those can be changed while a scheduler is in use.
    """
    old, new = _compared(before), _compared(now)
    if before["factors"] != now["factors"]:
        del new["trusted"]  # other arms follow from other levels
    return [
        f"{name}: {_short(old[name])}, here {_short(value)}"
        for name, value in new.items()
        if name in old and old[name] != value
    ]


def _compared(spec: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: spec[name] for name in ("name", "rng", "objective", "settings")}
    found["limits"] = sorted(spec["limits"])
    for kind in ("factors", "contexts"):
        factors = spec.get(kind, ())
        found[kind] = [factor["name"] for factor in factors]
        for factor in factors:
            found[factor["name"]] = "{levels} log={log} {labels}".format(**factor)
    space = ArmSpace([Factor(**factor) for factor in spec["factors"]])
    found["trusted"] = sorted(str(space[index]) for index in spec["seeds"])
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


@dataclass
class RecoveryState:
    """Open decisions, and what else follows from the events but is not part of the scheduler."""

    open: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # bodies, by their id
    # Tasks that were interrupted, and those measured last, whose answers may have begun: the index
    # of the arm, and the time.
    repeats: dict[str, tuple[int, float]] = field(default_factory=dict)
    measured: dict[str, tuple[int, float]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)  # empty: those of the spec
    warm: bool = False  # whether it learned from a table that it did not measure itself

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RecoveryState:
        """The inverse of ``to_json``; older journals lack ``measured`` and ``warm``."""
        return cls(
            {int(decision): body for decision, body in stored["open"].items()},
            {task: (arm, at_s) for task, (arm, at_s) in stored["repeats"].items()},
            {task: (arm, at_s) for task, (arm, at_s) in stored.get("measured", {}).items()},
            dict(stored["limits"]),
            stored.get("warm", False),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dict(vars(self))

    def add(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "decided" and event.decision is not None:
            self.open[event.decision] = event.body
            for task in event.body["tasks"]:
                self.repeats.pop(task, None)
        elif event.kind in ("measured", "cancelled") and event.decision is not None:
            self._close(event, self.open.pop(event.decision))
        elif event.kind == "limits":
            self.limits = dict(event.body["limits"])
        elif event.kind == "warm-start":
            self.warm = True

    def _close(self, event: Event, decided: Mapping[str, Any]) -> None:
        tasks = dict.fromkeys(decided["tasks"], (decided["arm"], event.now_s))
        if event.kind == "measured":
            for task in tasks:
                self.measured.pop(task, None)
            if not (event.body["told"]["failed"] or event.body["told"]["above"]):
                self.measured.update(tasks)
            while len(self.measured) > MEASURED:
                del self.measured[next(iter(self.measured))]
        elif event.body["why"] == INTERRUPTED:
            self.repeats.update(tasks)


def replay(scheduler: Scheduler, event: Event) -> None:
    """Let the scheduler do again what an event says; ValueError if it decides otherwise."""
    body = event.body
    if event.kind == "decided":
        given = body["available"]
        available = None if given is None else [scheduler.space[index] for index in given]
        decision = scheduler.ask(body["context"], available, event.now_s)
        if (decision.id, decision.arm.index) != (event.decision, body["arm"]):
            raise ValueError(
                f"event {event.id}: decision {event.decision} was {scheduler.space[body['arm']]}; "
                f"this version of {scheduler.name} makes decision {decision.id}, {decision.arm}"
            )
    elif event.kind == "measured" and event.decision is not None:
        told = body["told"]
        given = {"failed": told["failed"], "above": told["above"], **told["quantities"]}
        scheduler.tell(event.decision, now=event.now_s, **given)
    elif event.kind == "cancelled" and event.decision is not None:
        scheduler.cancel(event.decision)
    elif event.kind == "warm-start":
        scheduler.warm_start(pd.DataFrame(body["table"]), body["scatter"])
    elif event.kind == "limits":
        scheduler.change_limits(body["limits"])


class Learner:
    """A scheduler and its journal.

    At its start it is rebuilt by replaying the journal. If this version of the scheduler chooses
    otherwise, or cannot read the snapshot, a new scheduler learns from all measurements that are
    still there. Open decisions are cancelled, and ``arm_of`` gives the arms of their tasks. A task
    that was interrupted twice on one arm counts as failed there.

    If the journal cannot be written, a call raises ``JournalError`` and nothing has happened: the
    scheduler is rebuilt before its next use.

    Parameters
    ----------
    journal
        Of this scheduler alone; whoever opened it closes it, after ``close``.
    spec
        What makes the scheduler. The journal of another one is refused with a ValueError, but for
        other values of the same limits: these are changed, as by ``change_limits``.

    Examples
    --------
    >>> import tempfile
    >>> spec = SchedulerSpec("ucb", ArmSpace([Factor("threads", [1, 2])]), {"latency_s": 0.2})
    >>> with tempfile.TemporaryDirectory() as folder, Journal(f"{folder}/journal.db") as journal:
    ...     learner = Learner(journal, spec)
    ...     decision = learner.ask(["ada/1/0"])
    ...     learner.tell(decision.id, latency_s=0.1, energy_j=2.0)
    ...     [event.kind for event in journal.events()]
    ['started', 'decided', 'measured']
    """

    def __init__(self, journal: Journal, spec: SchedulerSpec) -> None:
        self.journal, self.spec = journal, spec
        self.scheduler: Scheduler  # to be read; ask and tell it through this class alone
        self._state = RecoveryState()
        self._stale = False  # whether memory may be ahead of the journal
        self._last = self._covered = 0  # events: written, and in the last snapshot
        with journal.lock:
            before = self._spec_of_journal()
            self._rebuild()
            self._write("started", {"scheduler": spec.name})
            self._close_interrupted()
            if before["limits"] != dict(spec.limits):
                log.warning("limits %s instead of %s", dict(spec.limits), before["limits"])
                self.change_limits(spec.limits)
                journal.set_meta("spec", json.dumps(spec.to_json()))

    def _spec_of_journal(self) -> Mapping[str, Any]:
        mine, before = self.spec.to_json(), read_spec(self.journal.path)
        if not before:
            new = Snapshot(0, self.spec.make().to_bytes(), RecoveryState().to_json())
            self.journal.keep_snapshot(new)
            self.journal.set_meta("spec", json.dumps(mine))
            return mine
        if found := differences(before, mine):
            raise ValueError(
                f"journal {self.journal.path}: of another scheduler ({'; '.join(found)}); start "
                "with these settings, or with a new journal: export and warm_start take over what "
                "was measured"
            )
        return before

    @property
    def has_learned(self) -> bool:
        """Whether anything was measured, or taken over from a table."""
        return self.scheduler.steps > 0 or self._state.warm

    def arm_of(self, task: str) -> Arm | None:
        """The arm that a task ran on before, as long as answers are stored; else None.

        Asked for again, such a task runs there once more, so that its answer begins as before.
        """
        since_s = self.journal.now_s() - self.journal.keep_answers_s
        for arms in (self._state.repeats, self._state.measured):
            if task in arms and arms[task][1] >= since_s:
                return self.spec.space[arms[task][0]]
        return None

    def ask(
        self,
        tasks: Sequence[str],
        *,
        context: Context | None = None,
        available: Iterable[Arm] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Decision:
        """The arm for some tasks, named ``user/id/place``, which run as one call.

        See ``Scheduler.ask``; ``facts`` are those of ``tell`` that are known already.
        """
        space = self.spec.space
        arms = None if available is None else sorted({space.index(arm) for arm in available})
        context = dict(context) if context else None
        with self._ready(), self._atomic():
            now_s = self.journal.now_s()
            decision = self.scheduler.ask(
                context, None if arms is None else [space[index] for index in arms], now_s
            )
            arm = decision.arm.index
            repeats = self._state.repeats
            body = {
                **{"tasks": list(tasks), "arm": arm},
                **{"context": context, "available": arms, "facts": _finite(facts or {})},
                "repeated": any(task in repeats and repeats[task][0] == arm for task in tasks),
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

        ``facts`` are further columns of the table, those of ``journal.FACTS`` and ``user``; other
        names are stored as well.
        """
        with self._ready():
            self.scheduler.would_learn(decision_id, failed=failed, above=above, **quantities)
            decided = self._state.open[decision_id]
            limit_s = self.scheduler.limits.get("latency_s")
            body = {
                "told": {"failed": failed, "above": above, "quantities": _finite(quantities)},
                "levels": dict(self.spec.space[decided["arm"]].levels),
                "facts": _finite({"limit_s": limit_s, **decided.get("facts", {}), **(facts or {})}),
                **{name: decided[name] for name in ("context", *EXPLAINED)},
            }
            with self._atomic():
                replay(self.scheduler, self._write("measured", body, decision_id))

    def cancel(self, decision_id: int, why: str, facts: Mapping[str, Any] | None = None) -> None:
        """The arm of that decision never ran; ``facts`` are stored with the reason."""
        with self._ready():
            self.scheduler.would_learn(decision_id, failed=why)
            body = {"why": why, "facts": _finite(facts or {})}
            with self._atomic():
                replay(self.scheduler, self._write("cancelled", body, decision_id))

    def warm_start(self, table: pd.DataFrame, scatter: float = 0.0) -> None:
        """Learn from measurements made before, or elsewhere; see ``Scheduler.warm_start``."""
        wanted = [*self.scheduler.joint.names, *self.scheduler.quantities, "failed"]
        columns = table[[name for name in wanted if name in table]].astype(object)
        kept = columns.where(columns.notna(), None)
        rows = {name: kept[name].tolist() for name in kept}
        self._try("warm-start", {"table": rows, "scatter": scatter})

    def change_limits(self, limits: Mapping[str, float]) -> None:
        """Other limits on the same quantities, from the next decision on."""
        self._try("limits", {"limits": dict(limits)})

    def close(self) -> None:
        """Leave a snapshot, so that the next start has nothing to replay."""
        with self._ready():
            self._snapshot()

    def _try(self, kind: str, body: Mapping[str, Any]) -> None:
        with self._ready(), self._atomic():
            now_s = self.journal.now_s()
            replay(self.scheduler, Event(0, now_s, kind, None, body))
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
    def _atomic(self) -> Iterator[None]:
        """A block that changes memory and journal alike; if it fails, memory is stale."""
        self._stale = True
        yield
        self._stale = False
        if self._last - self._covered >= SNAPSHOT_EVERY:
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
        self._state.add(event)
        self._last = event.id
        return event

    def _snapshot(self) -> None:
        recovery = self._state.to_json()
        self.journal.keep_snapshot(Snapshot(self._last, self.scheduler.to_bytes(), recovery))
        self._covered = self._last

    def _rebuild(self) -> None:
        began_s, snapshot = time.perf_counter(), self.journal.snapshot()
        events = list(self.journal.events(snapshot.after))
        self._state = RecoveryState.from_json(snapshot.recovery)
        self._covered = self._last = snapshot.after
        for event in events:
            self._state.add(event)
            self._last = event.id
        try:
            scheduler = Scheduler.from_bytes(snapshot.scheduler, "the snapshot in the journal")
            for event in events:
                replay(scheduler, event)
            self.scheduler = scheduler
        except (ValueError, ArithmeticError) as error:
            self._relearn(error)
        self._stale = False
        took_s = time.perf_counter() - began_s
        log.info("%s: %d events done again in %.2f s", self.journal.path, len(events), took_s)

    def _relearn(self, error: Exception) -> None:
        log.warning(
            "journal %s: cannot be done again: %s. A new scheduler learns from its measurements",
            self.journal.path,
            error,
        )
        for decision in list(self._state.open):
            self._write("cancelled", {"why": INTERRUPTED, "facts": {}}, decision)
        decided = (event.decision for event in self.journal.events() if event.kind == "decided")
        next_id = max((number for number in decided if number is not None), default=-1) + 1
        self.scheduler = self.spec.make()
        if self._state.limits:
            self.scheduler.change_limits(self._state.limits)
        runs = (one for one in self.journal.events() if one.kind in ("measured", "warm-start"))
        for kind, group in groupby(runs, key=lambda event: event.kind):
            if kind == "measured":
                self.scheduler.warm_start(table_of(group))
            else:
                for given in group:
                    replay(self.scheduler, given)
        # Ids go on, so that no decision is taken for one of before.
        self.scheduler.set_state({**self.scheduler.state(), "_next_id": next_id})
        self._write("relearned", {"why": str(error), "next": next_id})
        self._snapshot()

    def _close_interrupted(self) -> None:
        """End the decisions that the last process did not live to measure."""
        for decision, decided in list(self._state.open.items()):
            if decided.get("repeated"):
                self.tell(decision, failed=TWICE)
            else:
                self.cancel(decision, INTERRUPTED)
        since_s = self.journal.now_s() - self.journal.keep_answers_s
        kept = {task: arm for task, arm in self._state.repeats.items() if arm[1] >= since_s}
        self._state.repeats = kept


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without entries that are None, NaN or infinite, which JSON cannot hold."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
