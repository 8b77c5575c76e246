"""A scheduler as it was, from its last snapshot and what the journal says happened since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mllm_sched.arms import ArmSpace
from mllm_sched.edge.journal_records import Event, Snapshot
from mllm_sched.edge.journal_view import table_of
from mllm_sched.edge.scheduler_spec import SchedulerSpec
from mllm_sched.schedulers import Scheduler
from mllm_sched.schedulers.saving import unpacked

INTERRUPTED = "interrupted"  # why a decision was cancelled that its process did not live to end


class Diverged(ValueError):
    """The scheduler of this version chooses otherwise than the one that wrote the journal."""


@dataclass
class Standing:
    """What is under way, apart from what the scheduler knows of it.

    Attributes
    ----------
    open
        What was decided and is neither measured nor cancelled, by decision.
    repeats
        Tasks whose decisions were interrupted, each with its arm's index and since when.
    limits
        In force; empty as long as they are those of the spec.
    """

    open: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    repeats: dict[str, tuple[int, float]] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Standing:
        """The inverse of ``words``."""
        return cls(
            {int(decision): body for decision, body in words["open"].items()},
            {task: (arm, since_s) for task, (arm, since_s) in words["repeats"].items()},
            dict(words["limits"]),
        )

    def words(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"open": self.open, "repeats": self.repeats, "limits": self.limits}

    def follow(self, event: Event) -> None:
        """Take in one event."""
        if event.kind == "decided" and event.decision is not None:
            self.open[event.decision] = event.body
            for task in event.body["tasks"]:
                self.repeats.pop(task, None)
        elif event.kind in ("measured", "cancelled") and event.decision is not None:
            begun = self.open.pop(event.decision)
            if event.body.get("why") == INTERRUPTED:
                since = (begun["arm"], event.now_s)
                self.repeats.update(dict.fromkeys(begun["tasks"], since))
        elif event.kind == "limits":
            self.limits = dict(event.body["limits"])


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
    scheduler = unpacked(snapshot.scheduler, "the snapshot in the journal")
    for event in events:
        play(scheduler, event)
    return scheduler


def relearned(
    spec: SchedulerSpec, events: Iterable[Event], limits: Mapping[str, float], next_id: int
) -> Scheduler:
    """A new scheduler that has learned from all measurements still in the journal.

    Decisions are numbered from ``next_id``, so that none is taken for one of before.
    """
    scheduler = spec.make()
    if limits:
        scheduler.change_limits(limits)
    for table, scatter in _lessons(spec.space, events):
        scheduler.warm_start(table, scatter)
    scheduler.set_state({**scheduler.state(), "_next_id": next_id})
    return scheduler


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
