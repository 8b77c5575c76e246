"""A scheduler as it was, from its last snapshot and what the journal says happened since."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from mllm_sched.arms import ArmSpace
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.journal_records import Event, Snapshot
from mllm_sched.edge.journal_view import table_of
from mllm_sched.edge.scheduler_spec import SchedulerSpec, differences
from mllm_sched.edge.standing import Standing
from mllm_sched.schedulers import Scheduler


class Diverged(ValueError):
    """The scheduler of this version chooses otherwise than the one that wrote the journal."""


def begun_with(journal: Journal, spec: SchedulerSpec) -> Mapping[str, Any]:
    """Words of the spec that a journal was begun with; a new one begins with this."""
    mine, known = spec.words(), journal.meta("spec")
    if known is None:
        journal.keep_snapshot(Snapshot(0, spec.make().to_bytes(), Standing().words()))
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
