"""What Prometheus is told of an agent and of a front, as it happens."""

from __future__ import annotations

import math
import platform
from collections.abc import Collection, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from mllm_sched.edge import families as known
from mllm_sched.edge.families import NAMESPACE, OTHER, VALUES, Family
from mllm_sched.edge.scrape import MetricsServer
from mllm_sched.measurement import check_quantity

if TYPE_CHECKING:  # a front does without PyTorch
    from mllm_sched.arms import Arm
    from mllm_sched.schedulers import Decision


class Exposed:
    """Metrics in a registry of their own, and where they are scraped.

    Parameters
    ----------
    families
        What there is to tell.
    values
        Of labels that only this process knows, for example the names of its arms. A value that is
        in no list is counted as ``other``, so that nobody can make new series by what they send.
    """

    def __init__(self, families: Iterable[Family], **values: Collection[str]) -> None:
        disable_created_metrics()  # they would double the number of series
        self.registry = CollectorRegistry()
        self._values = {name: frozenset(given) for name, given in {**VALUES, **values}.items()}
        self._server: MetricsServer | None = None
        ProcessCollector(NAMESPACE, registry=self.registry)
        build = known.BUILD.made(self.registry)
        build.labels(version("mllm-sched"), platform.python_version()).set(1)
        self._metrics = {family: self._started(family) for family in families}

    def _started(self, family: Family) -> Any:
        """A counter with one label starts at 0 for all its values, so that no step is missed."""
        metric = family.made(self.registry)
        if len(family.labels) == 1 and family.kind is known.Counter:
            for value in sorted(self._values[family.labels[0]]):
                metric.labels(value)
        return metric

    def _of(self, family: Family, *labels: str) -> Any:
        """The metric, or its child with these labels."""
        metric = self._metrics[family]
        if not labels:
            return metric
        allowed = [
            label if label in self._values[name] else OTHER
            for name, label in zip(family.labels, labels, strict=True)
        ]
        return metric.labels(*allowed)

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry).decode()

    def serve(self, host: str = "127.0.0.1", port: int = 0, *, open_to_all: bool = False) -> int:
        """Serve them over HTTP until ``close``; the port, which is a free one for 0.

        Raises
        ------
        ValueError
            If they are served already, or others could reach the host: see ``MetricsServer``.
        OSError
            If the address is taken.
        """
        if self._server:
            raise ValueError(f"metrics are served on port {self._server.port}; close that first")
        self._server = MetricsServer(self.registry, host, port, open_to_all=open_to_all)
        return self._server.port

    def close(self) -> None:
        """Serve them no longer; called again, it does nothing."""
        server, self._server = self._server, None
        if server:
            server.close()


class Metrics(Exposed):
    """What an edge agent tells.

    Parameters
    ----------
    arms
        All that may be chosen, for example an ``ArmSpace``: one series each.
    violation_rate
        Share of tasks that may be above the limit; the alert compares with it.

    Examples
    --------
    >>> from mllm_sched import ArmSpace
    >>> space = ArmSpace.agx_orin()
    >>> metrics = Metrics(space)
    >>> metrics.measured(space[7], "image", 0.21, 3.0, limit_s=0.2, evidence="simulated")
    >>> [line for line in metrics.text().splitlines() if line.startswith("mllm_sched_violations")]
    ['mllm_sched_violations_total{evidence="simulated",modality="image"} 1.0']
    """

    def __init__(self, arms: Iterable[Arm], violation_rate: float = 0.05) -> None:
        super().__init__(known.AGENT_FAMILIES, arm=[str(arm) for arm in arms])
        self._of(known.VIOLATION_RATE).set(violation_rate)
        for unknown in (known.LIMIT, known.METER_UP, known.JOURNAL_UP, known.JOURNAL_BYTES):
            self._of(unknown).set(math.nan)  # no alert fires on it

    def decided(self, decision: Decision, modality: str) -> None:
        """The scheduler chose an arm."""
        self._of(known.DECISIONS, modality).inc()
        self._of(known.CHOSEN, str(decision.arm)).inc()
        safe = math.nan if decision.safe_arms is None else decision.safe_arms
        self._of(known.SAFE_ARMS, modality).set(safe)
        self._of(known.INFEASIBLE, modality).set(decision.infeasible)

    def measured(
        self,
        arm: Arm,
        modality: str,
        latency_s: float,
        energy_j: float | None,
        limit_s: float,
        evidence: str,
        energy_evidence: str = "",
    ) -> None:
        """A task was encoded.

        Parameters
        ----------
        energy_j
            None, NaN or 0 if the meter was gone.
        limit_s
            That held for it.
        evidence, energy_evidence
            Of the latency and of the energy, by default the same.

        Raises
        ------
        ValueError
            If the latency is no finite number above 0.
        """
        latency_s = check_quantity("latency_s", latency_s)
        self._of(known.TASKS, modality, evidence).inc()
        self._of(known.LATENCY, modality, evidence).observe(latency_s)
        self._of(known.VIOLATIONS, modality, evidence).inc(latency_s > limit_s)
        self._of(known.LIMIT).set(limit_s)
        metered = energy_j is not None and math.isfinite(energy_j) and energy_j > 0
        self.meter(metered)
        if metered:
            energy_evidence = energy_evidence or evidence
            self._of(known.TASK_ENERGY, modality, energy_evidence).observe(energy_j)
            self._of(known.ENERGY, str(arm), energy_evidence).inc(energy_j)

    def failed(self, arm: Arm, why_class: str) -> None:
        """A task could not be encoded: ``raised``, ``crashed``, ``hung``, ``memory`` or other."""
        self._of(known.FAILED, str(arm), why_class).inc()

    def answered(self, total_s: float, first_token_s: float | None, evidence: str) -> None:
        """An answer is complete; the first token is None if it has none.

        The evidence is that of the encoding: a simulated latency makes the whole simulated.
        """
        self._of(known.ANSWER, evidence).observe(check_quantity("total_s", total_s))
        if first_token_s is not None:
            first_token_s = check_quantity("first_token_s", first_token_s)
            self._of(known.FIRST_TOKEN, evidence).observe(first_token_s)

    def shed(self, reason: str) -> None:
        """A request was refused, or given up, for one of ``families.SHED``."""
        self._of(known.REFUSED, reason).inc()

    def queue(self, waiting: int, running: int, backlog_s: float) -> None:
        """How much there is to do now."""
        self._of(known.WAITING).set(waiting)
        self._of(known.RUNNING).set(running)
        self._of(known.BACKLOG).set(backlog_s)

    def alarm(self, kind: str) -> None:
        """Something is wrong: one of ``families.ALARMS``."""
        self._of(known.ALARM, kind).inc()

    def meter(self, is_up: bool) -> None:
        """Whether the energy meter reads; every measurement says it too."""
        self._of(known.METER_UP).set(is_up)

    def journal(self, size_bytes: float, ok: bool) -> None:
        """How large the journal is, and whether it takes writes."""
        self._of(known.JOURNAL_BYTES).set(size_bytes)
        self._of(known.JOURNAL_UP).set(ok)


class FrontMetrics(Exposed):
    """What a front tells.

    Parameters
    ----------
    agents
        Names of all agents it may ask: one series each.
    """

    def __init__(self, agents: Iterable[str]) -> None:
        super().__init__(known.FRONT_FAMILIES, agent=list(agents))

    def placed(self, agent: str) -> None:
        """A task went to this agent."""
        self._of(known.PLACED, agent).inc()

    def moved(self, agent: str) -> None:
        """A task left this agent, which did not finish it."""
        self._of(known.MOVED, agent).inc()

    def shed(self, reason: str) -> None:
        """A request was refused, for one of ``families.SHED``."""
        self._of(known.FRONT_REFUSED, reason).inc()

    def agents(self, up: int, down: int) -> None:
        """How many agents answer, and how many do not."""
        self._of(known.AGENTS, "up").set(up)
        self._of(known.AGENTS, "down").set(down)

    def answered(self, total_s: float, evidence: str) -> None:
        """An answer is complete; the evidence is that of its runs, as the agent tells it."""
        self._of(known.FRONT_ANSWER, evidence).observe(check_quantity("total_s", total_s))
