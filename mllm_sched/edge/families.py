"""Every metric of the running system: its name, its labels, and what it says.

Names follow Prometheus: base units, ``_total`` for what only grows. Labels have few values, all
known beforehand; no user, no request and no secret is among them. What has an evidence carries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mllm_sched.edge.refusals import REASONS
from mllm_sched.measurement import EVIDENCE
from mllm_sched.tasks import MODALITIES

NAMESPACE = "mllm_sched"
OTHER = "other"  # stands for whatever is not in the lists below
SHED = (*REASONS, "deadline", "server", "failed")
FAILURES = ("raised", "crashed", "hung", "memory")
ALARMS = ("drift", "journal", "meter", "clock", "worker", "behind")
VALUES = {
    **{"modality": MODALITIES, "evidence": EVIDENCE, "reason": SHED},
    **{"why": FAILURES, "kind": ALARMS, "state": ("up", "down")},
}
"""What the labels may say. Arms are those of the space, agents those of the front."""

# Close to each other where a limit on encoding usually lies, so that quantiles are sharp there.
LATENCY_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0),
)
ANSWER_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0)
ENERGY_J = (0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 50.0, 100.0)

Kind = TypeVar("Kind", Counter, Gauge, Histogram)


@dataclass(frozen=True)
class Family(Generic[Kind]):
    """One metric, with all values of its labels.

    Attributes
    ----------
    kind
        Class of prometheus_client.
    short
        Its name without the namespace.
    says
        What it counts; the help of the exposition.
    labels, buckets
        Names of its labels; upper bounds of a histogram's buckets, in the unit of its name.

    Examples
    --------
    >>> print(TASKS)
    mllm_sched_tasks_total
    """

    kind: type[Kind]
    short: str
    says: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{NAMESPACE}_{self.short}"

    def made(self, registry: CollectorRegistry) -> Kind:
        """The metric itself, in that registry."""
        if self.buckets:
            return self.kind(  # type: ignore[call-arg]
                str(self), self.says, self.labels, registry=registry, buckets=self.buckets
            )
        return self.kind(str(self), self.says, self.labels, registry=registry)


_WHAT = ("modality", "evidence")

MEMORY = f"{NAMESPACE}_process_resident_memory_bytes"  # prometheus_client's own
BUILD = Family(Gauge, "build_info", "1; the labels say what runs.", ("version", "python"))

DECISIONS = Family(Counter, "decisions_total", "Decisions of the scheduler.", ("modality",))
CHOSEN = Family(Counter, "arm_chosen_total", "Decisions for each arm.", ("arm",))
SAFE_ARMS = Family(
    *(Gauge, "safe_arms", "Arms certified to be within the limit; NaN if the rule certifies none."),
    ("modality",),
)
INFEASIBLE = Family(
    *(Gauge, "infeasible", "1 if no arm is held to meet the limit, else 0."), ("modality",)
)

TASKS = Family(Counter, "tasks_total", "Tasks encoded and measured.", _WHAT)
LATENCY = Family(
    *(Histogram, "encode_latency_seconds", "Latency of encoding one task."), _WHAT, LATENCY_S
)
VIOLATIONS = Family(
    Counter, "violations_total", "Tasks whose measured latency was above the limit.", _WHAT
)
ENERGY = Family(
    *(Counter, "energy_joules_total", "Energy of encoding, by the arm that took it."),
    ("arm", "evidence"),
)
TASK_ENERGY = Family(
    *(Histogram, "task_energy_joules", "Energy of encoding one task, where the meter was there."),
    *(_WHAT, ENERGY_J),
)
FAILED = Family(
    *(Counter, "failures_total", "Tasks whose encoding failed, by arm and class."), ("arm", "why")
)
LIMIT = Family(Gauge, "limit_seconds", "Limit on the latency of encoding; NaN before the first.")
VIOLATION_RATE = Family(Gauge, "violation_rate", "Share of tasks that may be above the limit.")

ANSWER = Family(
    *(Histogram, "answer_latency_seconds", "From the request to the end of its answer."),
    *(("evidence",), ANSWER_S),
)
FIRST_TOKEN = Family(
    *(Histogram, "first_token_latency_seconds", "From the request to its answer's first token."),
    *(("evidence",), ANSWER_S),
)

WAITING = Family(Gauge, "queue_waiting", "Tasks in the queue.")
RUNNING = Family(Gauge, "queue_running", "Tasks being encoded or answered.")
BACKLOG = Family(Gauge, "queue_backlog_seconds", "Until all had its turn, as predicted.")
REFUSED = Family(Counter, "shed_total", "Requests that were not served, by reason.", ("reason",))

ALARM = Family(Counter, "alarms_total", "Alarms raised, by kind.", ("kind",))
METER_UP = Family(Gauge, "meter_up", "1 if the energy meter reads, 0 if not, NaN if unknown.")
JOURNAL_UP = Family(Gauge, "journal_up", "1 if the journal takes writes, 0 if not, NaN if unknown.")
JOURNAL_BYTES = Family(Gauge, "journal_bytes", "Size of the journal on disk.")

PLACED = Family(Counter, "front_placed_total", "Tasks sent to each agent.", ("agent",))
MOVED = Family(
    Counter, "front_moved_total", "Tasks taken from an agent that did not finish them.", ("agent",)
)
FRONT_REFUSED = Family(
    Counter, "front_shed_total", "Requests that no agent was asked for, by reason.", ("reason",)
)
AGENTS = Family(Gauge, "front_agents", "Agents that answer (up), or do not (down).", ("state",))
FRONT_ANSWER = Family(
    *(Histogram, "front_answer_latency_seconds", "From the request to the end of its answer."),
    *(("evidence",), ANSWER_S),
)

AGENT_FAMILIES: tuple[Family, ...] = (
    *(DECISIONS, CHOSEN, SAFE_ARMS, INFEASIBLE, TASKS, LATENCY, VIOLATIONS, ENERGY, TASK_ENERGY),
    *(FAILED, LIMIT, VIOLATION_RATE, ANSWER, FIRST_TOKEN, WAITING, RUNNING, BACKLOG, REFUSED),
    *(ALARM, METER_UP, JOURNAL_UP, JOURNAL_BYTES),
)
FRONT_FAMILIES: tuple[Family, ...] = (PLACED, MOVED, FRONT_REFUSED, AGENTS, FRONT_ANSWER)
