"""Prometheus metrics of agents and fronts, and the server that is scraped.

Names follow Prometheus: base units, ``_total`` for what only grows. Labels have few values, all
known beforehand; no user, no request and no secret is among them. Quantities carry their evidence.
"""

from __future__ import annotations

import math
import platform
import socket
import socketserver
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
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
OTHER = "other"  # in place of a value that is not in the lists below
SHED = (*REASONS, "deadline", "server", "failed")
FAILURES = ("raised", "crashed", "hung", "memory")
ALARMS = ("drift", "journal", "meter", "clock", "worker", "behind")
VALUES = {
    **{"modality": MODALITIES, "evidence": EVIDENCE, "reason": SHED},
    **{"why": FAILURES, "kind": ALARMS, "state": ("up", "down")},
}
"""Values of the labels. Arms are those of the space, agents those of the front."""

TASK = ("modality", "evidence")
# Every metric: its kind, its help, its labels.
AGENT: dict[str, tuple[Any, ...]] = {
    "decisions_total": (Counter, "Decisions of the scheduler.", "modality"),
    "arm_chosen_total": (Counter, "Decisions for each arm.", "arm"),
    "safe_arms": (Gauge, "Arms certified to be within the limit; NaN if none can be.", "modality"),
    "infeasible": (Gauge, "1 if no arm is held to meet the limit, else 0.", "modality"),
    "tasks_total": (Counter, "Tasks encoded and measured.", *TASK),
    "encode_latency_seconds": (Histogram, "Latency of encoding one task.", *TASK),
    "violations_total": (Counter, "Tasks whose measured latency was above the limit.", *TASK),
    "energy_joules_total": (Counter, "Energy of encoding, by the arm.", "arm", "evidence"),
    "task_energy_joules": (Histogram, "Energy of encoding one task, where metered.", *TASK),
    "failures_total": (Counter, "Tasks whose encoding failed, by arm and class.", "arm", "why"),
    "limit_seconds": (Gauge, "Limit on the latency of encoding; NaN before the first."),
    "violation_rate": (Gauge, "Share of tasks that may be above the limit."),
    "answer_latency_seconds": (Histogram, "From the request to its answer's end.", "evidence"),
    "first_token_latency_seconds": (Histogram, "From it to the first token.", "evidence"),
    "queue_waiting": (Gauge, "Tasks in the queue."),
    "queue_running": (Gauge, "Tasks being encoded or answered."),
    "queue_backlog_seconds": (Gauge, "Until all had its turn, as predicted."),
    "shed_total": (Counter, "Requests that were not served, by reason.", "reason"),
    "alarms_total": (Counter, "Alarms raised, by kind.", "kind"),
    "meter_up": (Gauge, "1 if the energy meter reads, 0 if not, NaN if unknown."),
    "journal_up": (Gauge, "1 if the journal takes writes, 0 if not, NaN if unknown."),
    "journal_bytes": (Gauge, "Size of the journal on disk."),
}
FRONT: dict[str, tuple[Any, ...]] = {
    "front_placed_total": (Counter, "Tasks sent to each agent.", "agent"),
    "front_moved_total": (Counter, "Tasks taken from an agent that did not finish them.", "agent"),
    "front_shed_total": (Counter, "Requests that no agent was asked for, by reason.", "reason"),
    "front_agents": (Gauge, "Agents that answer (up), or do not (down).", "state"),
    "front_answer_latency_seconds": (Histogram, "Of a request, to its end.", "evidence"),
}
UNKNOWN = ("limit_seconds", "meter_up", "journal_up", "journal_bytes")  # until they are told

ANSWER_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0)
BUCKETS = {  # of the others; close to each other where a limit on encoding usually lies
    "encode_latency_seconds": (
        *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3),
        *(0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0),
    ),
    "task_energy_joules": (
        *(0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 50.0, 100.0),
    ),
}


class Exposed:
    """Metrics in a registry of their own, and the server that exposes them.

    ``values`` are those of labels that only this process knows, such as the names of its arms. One
    that is in no list is counted as ``other``, so that no request can make new series.
    """

    def __init__(self, metrics: Mapping[str, tuple[Any, ...]], **values: Collection[str]) -> None:
        disable_created_metrics()  # they would double the number of series
        self.registry = CollectorRegistry()
        self._values = {name: frozenset(given) for name, given in {**VALUES, **values}.items()}
        self._server: MetricsServer | None = None
        self._metrics: dict[str, Any] = {}
        ProcessCollector(NAMESPACE, registry=self.registry)
        runs = {"version": version("mllm-sched"), "python": platform.python_version()}
        says = "1; the labels say what runs."
        Gauge(f"{NAMESPACE}_build_info", says, runs, registry=self.registry).labels(**runs).set(1)
        for name, (kind, says, *labels) in metrics.items():
            more = {"buckets": BUCKETS.get(name, ANSWER_S)} if kind is Histogram else {}
            metric = kind(f"{NAMESPACE}_{name}", says, labels, registry=self.registry, **more)
            self._metrics[name] = metric
            if kind is Counter and len(labels) == 1:  # starts at 0, so that no step is missed
                for value in sorted(self._values[labels[0]]):
                    metric.labels(value)

    def _of(self, name: str, **labels: str) -> Any:
        """The series of a metric with these labels."""
        values, metric = self._values, self._metrics[name]
        known = {name: one if one in values[name] else OTHER for name, one in labels.items()}
        return metric.labels(**known) if known else metric

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry).decode()

    def serve(self, host: str = "127.0.0.1", port: int = 0, *, open_to_all: bool = False) -> int:
        """Serve them at one address until ``close``; returns the port. See ``MetricsServer``."""
        self.close()
        self._server = MetricsServer(self.registry, host, port, open_to_all=open_to_all)
        return self._server.port

    def close(self) -> None:
        """Serve them no longer; called again, it does nothing."""
        if self._server:
            self._server.close()
        self._server = None


class Metrics(Exposed):
    """Metrics of an edge agent: one series for each arm that may be chosen.

    Examples
    --------
    >>> from mllm_sched import ArmSpace
    >>> space = ArmSpace.agx_orin()
    >>> metrics = Metrics(space)
    >>> metrics.measured(space[7], "image", 0.21, 3.0, 0.2, "simulated", "simulated")
    >>> [line for line in metrics.text().splitlines() if line.startswith("mllm_sched_violations")]
    ['mllm_sched_violations_total{evidence="simulated",modality="image"} 1.0']
    """

    def __init__(self, arms: Iterable[Arm], violation_rate: float = 0.05) -> None:
        super().__init__(AGENT, arm=[str(arm) for arm in arms])
        self._of("violation_rate").set(violation_rate)
        for unknown in UNKNOWN:
            self._of(unknown).set(math.nan)  # no alert fires on it

    def decided(self, decision: Decision, modality: str) -> None:
        """The scheduler chose an arm."""
        self._of("decisions_total", modality=modality).inc()
        self._of("arm_chosen_total", arm=str(decision.arm)).inc()
        safe = math.nan if decision.safe_arms is None else decision.safe_arms
        self._of("safe_arms", modality=modality).set(safe)
        self._of("infeasible", modality=modality).set(decision.infeasible)

    def measured(
        self,
        arm: Arm,
        modality: str,
        latency_s: float,
        energy_j: float,
        limit_s: float,
        evidence: str,
        energy_evidence: str,
    ) -> None:
        """A task was encoded; without a meter the energy is NaN or 0.

        Raises ValueError if the latency is no finite number above 0.
        """
        latency_s = check_quantity("latency_s", latency_s)
        task = {"modality": modality, "evidence": evidence}
        self._of("tasks_total", **task).inc()
        self._of("encode_latency_seconds", **task).observe(latency_s)
        self._of("violations_total", **task).inc(latency_s > limit_s)
        self._of("limit_seconds").set(limit_s)
        metered = 0 < energy_j < math.inf
        self.meter(metered)
        if metered:
            task["evidence"] = energy_evidence
            self._of("task_energy_joules", **task).observe(energy_j)
            self._of("energy_joules_total", arm=str(arm), evidence=energy_evidence).inc(energy_j)

    def failed(self, arm: Arm, why_class: str) -> None:
        """A task could not be encoded: ``raised``, ``crashed``, ``hung``, ``memory`` or other."""
        self._of("failures_total", arm=str(arm), why=why_class).inc()

    def answered(self, total_s: float, first_token_s: float | None, evidence: str) -> None:
        """An answer is complete; the first token is None if it has none.

        The evidence is that of the encoding: a simulated latency makes the whole simulated.
        """
        total_s = check_quantity("total_s", total_s)
        self._of("answer_latency_seconds", evidence=evidence).observe(total_s)
        if first_token_s is not None:
            first_token_s = check_quantity("first_token_s", first_token_s)
            self._of("first_token_latency_seconds", evidence=evidence).observe(first_token_s)

    def shed(self, reason: str) -> None:
        """A request was refused, or given up, for one of ``SHED``."""
        self._of("shed_total", reason=reason).inc()

    def queue(self, waiting: int, running: int, backlog_s: float) -> None:
        """State of the queue."""
        self._of("queue_waiting").set(waiting)
        self._of("queue_running").set(running)
        self._of("queue_backlog_seconds").set(backlog_s)

    def alarm(self, kind: str) -> None:
        """Something is wrong: one of ``ALARMS``."""
        self._of("alarms_total", kind=kind).inc()

    def meter(self, is_up: bool) -> None:
        """Whether the energy meter reads."""
        self._of("meter_up").set(is_up)

    def journal(self, size_bytes: float, ok: bool) -> None:
        """Size of the journal, and whether it takes writes."""
        self._of("journal_bytes").set(size_bytes)
        self._of("journal_up").set(ok)


class FrontMetrics(Exposed):
    """Metrics of a front that may ask these agents: one series each."""

    def __init__(self, agents: Iterable[str]) -> None:
        super().__init__(FRONT, agent=list(agents))

    def placed(self, agent: str) -> None:
        """A task went to this agent."""
        self._of("front_placed_total", agent=agent).inc()

    def moved(self, agent: str) -> None:
        """A task left this agent, which did not finish it."""
        self._of("front_moved_total", agent=agent).inc()

    def shed(self, reason: str) -> None:
        """A request was refused, for one of ``SHED``."""
        self._of("front_shed_total", reason=reason).inc()

    def agents(self, up: int, down: int) -> None:
        """How many agents answer, and how many do not."""
        self._of("front_agents", state="up").set(up)
        self._of("front_agents", state="down").set(down)

    def answered(self, total_s: float, evidence: str) -> None:
        """An answer is complete; the evidence is that of its runs, as the agent tells it."""
        total_s = check_quantity("total_s", total_s)
        self._of("front_answer_latency_seconds", evidence=evidence).observe(total_s)


REQUEST_S = 5.0  # for a whole request and its answer, however slowly either side goes
AT_ONCE = 16  # connections; more are closed unread


class MetricsServer(socketserver.ThreadingTCPServer):
    """Serves the metrics of a registry until it is closed; port 0 takes a free one.

    Raises
    ------
    ValueError
        If others could reach the host, in the clear, and ``open_to_all`` does not allow that.
    OSError
        If the address is taken.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * AT_ONCE  # else a burst would wait for its packets to be sent again

    def __init__(
        self, registry: CollectorRegistry, host: str, port: int, *, open_to_all: bool = False
    ) -> None:
        if not (is_loopback(host) or open_to_all):
            raise ValueError(
                f"metrics on host {host}: others could read them; take a loopback address, "
                "or say open_to_all if that is meant"
            )
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((host, port), _Handler.factory(registry))
        self.port: int = self.server_address[1]
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, which is cut when its time is over, in whatever state it is."""
        cut = threading.Timer(REQUEST_S, _cut, [request])
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
    with suppress(OSError):  # it ended by itself just now
        request.shutdown(socket.SHUT_RDWR)


class _Handler(MetricsHandler):
    server_version, sys_version = "mllm-sched", ""

    def do_GET(self) -> None:
        """The metrics, and nothing else."""
        if urlsplit(self.path).path == "/metrics":
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="only /metrics is here")
