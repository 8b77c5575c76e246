"""Metrics of the running system: what each is, when it is counted, and where Prometheus scrapes it.

Names follow Prometheus: base units, ``_total`` for what only grows. Labels have few values, all
known beforehand; no user, no request and no secret is among them. What has an evidence carries it.
"""

from __future__ import annotations

import math
import platform
import socket
import socketserver
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    MetricsHandler,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from mllm_sched.edge.refusals import REASONS
from mllm_sched.measurement import EVIDENCE, check_quantity
from mllm_sched.pipeline.options import is_loopback
from mllm_sched.tasks import MODALITIES

if TYPE_CHECKING:
    from mllm_sched.arms import Arm
    from mllm_sched.schedulers import Decision


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
class MetricFamily(Generic[Kind]):
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
BUILD = MetricFamily(Gauge, "build_info", "1; the labels say what runs.", ("version", "python"))

DECISIONS = MetricFamily(Counter, "decisions_total", "Decisions of the scheduler.", ("modality",))
CHOSEN = MetricFamily(Counter, "arm_chosen_total", "Decisions for each arm.", ("arm",))
SAFE_ARMS = MetricFamily(
    *(Gauge, "safe_arms", "Arms certified to be within the limit; NaN if the rule certifies none."),
    ("modality",),
)
INFEASIBLE = MetricFamily(
    *(Gauge, "infeasible", "1 if no arm is held to meet the limit, else 0."), ("modality",)
)

TASKS = MetricFamily(Counter, "tasks_total", "Tasks encoded and measured.", _WHAT)
LATENCY = MetricFamily(
    *(Histogram, "encode_latency_seconds", "Latency of encoding one task."), _WHAT, LATENCY_S
)
VIOLATIONS = MetricFamily(
    Counter, "violations_total", "Tasks whose measured latency was above the limit.", _WHAT
)
ENERGY = MetricFamily(
    *(Counter, "energy_joules_total", "Energy of encoding, by the arm that took it."),
    ("arm", "evidence"),
)
TASK_ENERGY = MetricFamily(
    *(Histogram, "task_energy_joules", "Energy of encoding one task, where the meter was there."),
    *(_WHAT, ENERGY_J),
)
FAILED = MetricFamily(
    *(Counter, "failures_total", "Tasks whose encoding failed, by arm and class."), ("arm", "why")
)
LIMIT = MetricFamily(
    Gauge, "limit_seconds", "Limit on the latency of encoding; NaN before the first."
)
VIOLATION_RATE = MetricFamily(
    Gauge, "violation_rate", "Share of tasks that may be above the limit."
)

ANSWER = MetricFamily(
    *(Histogram, "answer_latency_seconds", "From the request to the end of its answer."),
    *(("evidence",), ANSWER_S),
)
FIRST_TOKEN = MetricFamily(
    *(Histogram, "first_token_latency_seconds", "From the request to its answer's first token."),
    *(("evidence",), ANSWER_S),
)

WAITING = MetricFamily(Gauge, "queue_waiting", "Tasks in the queue.")
RUNNING = MetricFamily(Gauge, "queue_running", "Tasks being encoded or answered.")
BACKLOG = MetricFamily(Gauge, "queue_backlog_seconds", "Until all had its turn, as predicted.")
REFUSED = MetricFamily(
    Counter, "shed_total", "Requests that were not served, by reason.", ("reason",)
)

ALARM = MetricFamily(Counter, "alarms_total", "Alarms raised, by kind.", ("kind",))
METER_UP = MetricFamily(Gauge, "meter_up", "1 if the energy meter reads, 0 if not, NaN if unknown.")
JOURNAL_UP = MetricFamily(
    Gauge, "journal_up", "1 if the journal takes writes, 0 if not, NaN if unknown."
)
JOURNAL_BYTES = MetricFamily(Gauge, "journal_bytes", "Size of the journal on disk.")

PLACED = MetricFamily(Counter, "front_placed_total", "Tasks sent to each agent.", ("agent",))
MOVED = MetricFamily(
    Counter, "front_moved_total", "Tasks taken from an agent that did not finish them.", ("agent",)
)
FRONT_REFUSED = MetricFamily(
    Counter, "front_shed_total", "Requests that no agent was asked for, by reason.", ("reason",)
)
AGENTS = MetricFamily(
    Gauge, "front_agents", "Agents that answer (up), or do not (down).", ("state",)
)
FRONT_ANSWER = MetricFamily(
    *(Histogram, "front_answer_latency_seconds", "From the request to the end of its answer."),
    *(("evidence",), ANSWER_S),
)

AGENT_FAMILIES: tuple[MetricFamily, ...] = (
    *(DECISIONS, CHOSEN, SAFE_ARMS, INFEASIBLE, TASKS, LATENCY, VIOLATIONS, ENERGY, TASK_ENERGY),
    *(FAILED, LIMIT, VIOLATION_RATE, ANSWER, FIRST_TOKEN, WAITING, RUNNING, BACKLOG, REFUSED),
    *(ALARM, METER_UP, JOURNAL_UP, JOURNAL_BYTES),
)
FRONT_FAMILIES: tuple[MetricFamily, ...] = (PLACED, MOVED, FRONT_REFUSED, AGENTS, FRONT_ANSWER)


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

    def __init__(self, families: Iterable[MetricFamily], **values: Collection[str]) -> None:
        disable_created_metrics()  # they would double the number of series
        self.registry = CollectorRegistry()
        self._values = {name: frozenset(given) for name, given in {**VALUES, **values}.items()}
        self._server: MetricsServer | None = None
        ProcessCollector(NAMESPACE, registry=self.registry)
        build = BUILD.made(self.registry)
        build.labels(version("mllm-sched"), platform.python_version()).set(1)
        self._metrics = {family: self._started(family) for family in families}

    def _started(self, family: MetricFamily) -> Any:
        """A counter with one label starts at 0 for all its values, so that no step is missed."""
        metric = family.made(self.registry)
        if len(family.labels) == 1 and family.kind is Counter:
            for value in sorted(self._values[family.labels[0]]):
                metric.labels(value)
        return metric

    def _of(self, family: MetricFamily, *labels: str) -> Any:
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
        super().__init__(AGENT_FAMILIES, arm=[str(arm) for arm in arms])
        self._of(VIOLATION_RATE).set(violation_rate)
        for unknown in (LIMIT, METER_UP, JOURNAL_UP, JOURNAL_BYTES):
            self._of(unknown).set(math.nan)  # no alert fires on it

    def decided(self, decision: Decision, modality: str) -> None:
        """The scheduler chose an arm."""
        self._of(DECISIONS, modality).inc()
        self._of(CHOSEN, str(decision.arm)).inc()
        safe = math.nan if decision.safe_arms is None else decision.safe_arms
        self._of(SAFE_ARMS, modality).set(safe)
        self._of(INFEASIBLE, modality).set(decision.infeasible)

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
        self._of(TASKS, modality, evidence).inc()
        self._of(LATENCY, modality, evidence).observe(latency_s)
        self._of(VIOLATIONS, modality, evidence).inc(latency_s > limit_s)
        self._of(LIMIT).set(limit_s)
        metered = energy_j is not None and math.isfinite(energy_j) and energy_j > 0
        self.meter(metered)
        if metered:
            energy_evidence = energy_evidence or evidence
            self._of(TASK_ENERGY, modality, energy_evidence).observe(energy_j)
            self._of(ENERGY, str(arm), energy_evidence).inc(energy_j)

    def failed(self, arm: Arm, why_class: str) -> None:
        """A task could not be encoded: ``raised``, ``crashed``, ``hung``, ``memory`` or other."""
        self._of(FAILED, str(arm), why_class).inc()

    def answered(self, total_s: float, first_token_s: float | None, evidence: str) -> None:
        """An answer is complete; the first token is None if it has none.

        The evidence is that of the encoding: a simulated latency makes the whole simulated.
        """
        self._of(ANSWER, evidence).observe(check_quantity("total_s", total_s))
        if first_token_s is not None:
            first_token_s = check_quantity("first_token_s", first_token_s)
            self._of(FIRST_TOKEN, evidence).observe(first_token_s)

    def shed(self, reason: str) -> None:
        """A request was refused, or given up, for one of ``SHED``."""
        self._of(REFUSED, reason).inc()

    def queue(self, waiting: int, running: int, backlog_s: float) -> None:
        """How much there is to do now."""
        self._of(WAITING).set(waiting)
        self._of(RUNNING).set(running)
        self._of(BACKLOG).set(backlog_s)

    def alarm(self, kind: str) -> None:
        """Something is wrong: one of ``ALARMS``."""
        self._of(ALARM, kind).inc()

    def meter(self, is_up: bool) -> None:
        """Whether the energy meter reads; every measurement says it too."""
        self._of(METER_UP).set(is_up)

    def journal(self, size_bytes: float, ok: bool) -> None:
        """How large the journal is, and whether it takes writes."""
        self._of(JOURNAL_BYTES).set(size_bytes)
        self._of(JOURNAL_UP).set(ok)


class FrontMetrics(Exposed):
    """What a front tells.

    Parameters
    ----------
    agents
        Names of all agents it may ask: one series each.
    """

    def __init__(self, agents: Iterable[str]) -> None:
        super().__init__(FRONT_FAMILIES, agent=list(agents))

    def placed(self, agent: str) -> None:
        """A task went to this agent."""
        self._of(PLACED, agent).inc()

    def moved(self, agent: str) -> None:
        """A task left this agent, which did not finish it."""
        self._of(MOVED, agent).inc()

    def shed(self, reason: str) -> None:
        """A request was refused, for one of ``SHED``."""
        self._of(FRONT_REFUSED, reason).inc()

    def agents(self, up: int, down: int) -> None:
        """How many agents answer, and how many do not."""
        self._of(AGENTS, "up").set(up)
        self._of(AGENTS, "down").set(down)

    def answered(self, total_s: float, evidence: str) -> None:
        """An answer is complete; the evidence is that of its runs, as the agent tells it."""
        self._of(FRONT_ANSWER, evidence).observe(check_quantity("total_s", total_s))


REQUEST_S = 5.0  # for a whole request and its answer, however slowly either side goes
AT_ONCE = 16  # connections; more are closed unread


class MetricsServer:
    """Serves the metrics of a registry until it is closed.

    Parameters
    ----------
    registry
        Whose metrics.
    host, port
        To listen on; port 0 takes a free one.
    open_to_all
        Whether others than this machine may read, in the clear.
    request_s
        After which a request is cut off.

    Raises
    ------
    ValueError
        If others could reach the host and ``open_to_all`` does not say that this is meant.
    OSError
        If the address is taken.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        open_to_all: bool = False,
        request_s: float = REQUEST_S,
    ) -> None:
        if not (is_loopback(host) or open_to_all):
            raise ValueError(
                f"metrics on host {host}: others could read them; take a loopback address, "
                "or say open_to_all if that is meant"
            )
        self._server = _Server(registry, host.strip("[]"), port, request_s)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; called again, it does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * AT_ONCE  # else a burst would wait for its packets to be sent again

    def __init__(self, registry: CollectorRegistry, host: str, port: int, request_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._request_s = request_s
        handler: Any = type("Handler", (_Handler,), {"registry": registry, "timeout": request_s})
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, which is cut when its time is over, in whatever state it is."""
        cut = threading.Timer(self._request_s, _cut, [request])
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was cut off is no news."""


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:  # it ended by itself just now
        return


class _Handler(MetricsHandler):
    server_version, sys_version = "mllm-sched", ""

    def do_GET(self) -> None:
        """The metrics, and nothing else."""
        if urlsplit(self.path).path == "/metrics":
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="only /metrics is here")
