"""A scheduler as it was, from its last snapshot and the events that the journal holds since.

``RecoveryState`` is what the scheduler itself does not know of its tasks: the open decisions and
limits, rebuilt from the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mllm_sched.arms import ArmSpace
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.journal_schema import Event, Snapshot
from mllm_sched.edge.journal_table import table_of
from mllm_sched.edge.scheduler_spec import SchedulerSpec, differences
from mllm_sched.schedulers import Scheduler

INTERRUPTED = "interrupted"  # why a decision was cancelled that its process did not live to end
MEASURED = 1000  # tasks measured last, whose arms are remembered


@dataclass
class RecoveryState:
    """What is under way. It follows from the events alone.

    Attributes
    ----------
    open
        What was decided and is neither measured nor cancelled, by decision.
    repeats
        Tasks whose decisions were interrupted, each with its arm's index and since when.
    measured
        The same of the tasks measured last: their answers may have begun.
    limits
        In force; empty as long as they are those of the spec.
    warm
        Whether the scheduler learned from a table that it did not measure itself.
    """

    open: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    repeats: dict[str, tuple[int, float]] = field(default_factory=dict)
    measured: dict[str, tuple[int, float]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    warm: bool = False

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> RecoveryState:
        """The inverse of ``words``; those of an older journal have fewer."""
        return cls(
            {int(decision): body for decision, body in words["open"].items()},
            {task: (arm, since_s) for task, (arm, since_s) in words["repeats"].items()},
            {task: (arm, since_s) for task, (arm, since_s) in words.get("measured", {}).items()},
            dict(words["limits"]),
            words.get("warm", False),
        )

    def words(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dict(vars(self))

    def follow(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "decided" and event.decision is not None:
            self.open[event.decision] = event.body
            for task in event.body["tasks"]:
                self.repeats.pop(task, None)
        elif event.kind in ("measured", "cancelled") and event.decision is not None:
            self._end(event, self.open.pop(event.decision))
        elif event.kind == "limits":
            self.limits = dict(event.body["limits"])
        elif event.kind == "warm-start":
            self.warm = True

    def _end(self, event: Event, begun: Mapping[str, Any]) -> None:
        tasks = dict.fromkeys(begun["tasks"], (begun["arm"], event.now_s))
        if event.kind == "measured":
            for task in tasks:
                self.measured.pop(task, None)
            if not (event.body["told"]["failed"] or event.body["told"]["above"]):
                self.measured.update(tasks)
            while len(self.measured) > MEASURED:
                del self.measured[next(iter(self.measured))]
        elif event.body["why"] == INTERRUPTED:
            self.repeats.update(tasks)

    def repeated(self, tasks: Sequence[str], arm: int) -> bool:
        """Whether one of these tasks was interrupted on that very arm before."""
        return any(task in self.repeats and self.repeats[task][0] == arm for task in tasks)

    def arm_of(self, task: str, since_s: float) -> int | None:
        """The arm that a task ran on, if it was interrupted or measured after that time."""
        for known in (self.repeats, self.measured):
            if task in known and known[task][1] >= since_s:
                return known[task][0]
        return None

    def forget(self, before_s: float) -> None:
        """Drop arms of tasks that nobody asks for any more."""
        self.repeats = {task: kept for task, kept in self.repeats.items() if kept[1] >= before_s}


class Diverged(ValueError):
    """The scheduler of this version chooses otherwise than the one that wrote the journal."""


def begun_with(journal: Journal, spec: SchedulerSpec) -> Mapping[str, Any]:
    """Words of the spec that a journal was begun with; a new one begins with this."""
    mine, known = spec.words(), journal.meta("spec")
    if known is None:
        journal.keep_snapshot(Snapshot(0, spec.make().to_bytes(), RecoveryState().words()))
        journal.set_meta("spec", json.dumps(mine))
        return mine
    words: dict[str, Any] = json.loads(known)
    if found := differences(words, mine):
        raise ValueError(
            f"journal {journal.path}: of another scheduler ({'; '.join(found)}); start with these "
            "settings, or with a new journal: export and warm_start take over what was measured"
        )
    return words


def lesson(scheduler: Scheduler, table: pd.DataFrame, scatter: float) -> dict[str, Any]:
    """A table of measurements as an event ``warm-start`` has it."""
    wanted = [*scheduler.joint.names, *scheduler.quantities, "failed"]
    columns = table[[name for name in wanted if name in table]].astype(object)
    kept = columns.where(columns.notna(), None)
    return {"table": {name: kept[name].tolist() for name in kept}, "scatter": scatter}


def play(scheduler: Scheduler, event: Event) -> None:
    """Let the scheduler do, or hear, what the event says.

    Raises
    ------
    Diverged
        If it decides otherwise.
    ValueError
        As the scheduler does.
    """
    body = event.body
    if event.kind == "decided":
        _decide(scheduler, event)
    elif event.kind == "measured" and event.decision is not None:
        told = body["told"]
        failed, above = told["failed"], told["above"]
        scheduler.tell(
            event.decision, failed=failed, above=above, now=event.now_s, **told["quantities"]
        )
    elif event.kind == "cancelled" and event.decision is not None:
        scheduler.cancel(event.decision)
    elif event.kind == "warm-start":
        scheduler.warm_start(pd.DataFrame(body["table"]), body["scatter"])
    elif event.kind == "limits":
        scheduler.change_limits(body["limits"])


def _decide(scheduler: Scheduler, event: Event) -> None:
    given = event.body["available"]
    available = None if given is None else [scheduler.space[index] for index in given]
    decision = scheduler.ask(event.body["context"], available, event.now_s)
    if (decision.id, decision.arm.index) != (event.decision, event.body["arm"]):
        chosen = scheduler.space[event.body["arm"]]
        raise Diverged(
            f"event {event.id}: decision {event.decision} was {chosen}; "
            f"this version of {scheduler.name} makes decision {decision.id}, {decision.arm}"
        )


def restored(snapshot: Snapshot, events: Iterable[Event]) -> Scheduler:
    """The scheduler to the last bit.

    Raises
    ------
    ValueError
        If this version of the rule cannot read the snapshot, or does not do again what it did.
    """
    scheduler = Scheduler.from_bytes(snapshot.scheduler, "the snapshot in the journal")
    for event in events:
        play(scheduler, event)
    return scheduler


def relearned(
    spec: SchedulerSpec, journal: Journal, limits: Mapping[str, float]
) -> tuple[Scheduler, int]:
    """A new scheduler that has learned from all measurements still in the journal.

    Its decisions are numbered from the second result on, so that none is taken for one of before.
    """
    decided = (event.decision for event in journal.events() if event.kind == "decided")
    next_id = max((number for number in decided if number is not None), default=-1) + 1
    scheduler = spec.make()
    if limits:
        scheduler.change_limits(limits)
    for table, scatter in _lessons(spec.space, journal.events()):
        scheduler.warm_start(table, scatter)
    scheduler.set_state({**scheduler.state(), "_next_id": next_id})
    return scheduler, next_id


def _lessons(space: ArmSpace, events: Iterable[Event]) -> Iterator[tuple[pd.DataFrame, float]]:
    """Tables to learn from, in their order: own measurements, and what other boards said."""
    measured: list[Event] = []
    for event in events:
        if event.kind == "measured":
            measured.append(event)
        elif event.kind == "warm-start":
            if measured:
                yield table_of(measured), 0.0
            measured = []
            yield pd.DataFrame(event.body["table"]), event.body["scatter"]
    if measured:
        yield table_of(measured), 0.0
