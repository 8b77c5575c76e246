"""What is under way, as the journal says it: what a scheduler does not know of its own tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.edge.journal_records import Event

INTERRUPTED = "interrupted"  # why a decision was cancelled that its process did not live to end
MEASURED = 1000  # tasks measured last, whose arms are remembered


@dataclass
class Standing:
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
    def of(cls, words: Mapping[str, Any]) -> Standing:
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
