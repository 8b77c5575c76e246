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
from collections.abc import Collection, Iterable, Sequence
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

# Buckets; close to each other where a limit on encoding usually lies.
LATENCY_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0),
)
ANSWER_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0)
ENERGY_J = (0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 50.0, 100.0)


class Exposed:
    """Metrics in a registry of their own, and the server that exposes them.

    Parameters
    ----------
    values
        Of labels that only this process knows, for example the names of its arms. A value that is
        in no list is counted as ``other``, so that no request can make new series.
    """

    def __init__(self, **values: Collection[str]) -> None:
        disable_created_metrics()  # they would double the number of series
        self.registry = CollectorRegistry()
        self._values = {name: frozenset(given) for name, given in {**VALUES, **values}.items()}
        self._server: MetricsServer | None = None
        ProcessCollector(NAMESPACE, registry=self.registry)
        build = self._gauge("build_info", "1; the labels say what runs.", "version", "python")
        build.labels(version("mllm-sched"), platform.python_version()).set(1)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        """One with a single label starts at 0 for all its values, so that no step is missed."""
        counter = Counter(f"{NAMESPACE}_{name}", says, labels, registry=self.registry)
        if len(labels) == 1:
            for value in sorted(self._values[labels[0]]):
                counter.labels(value)
        return counter

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"{NAMESPACE}_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: Sequence[float], *labels: str) -> Histogram:
        name = f"{NAMESPACE}_{name}"
        return Histogram(name, says, labels, registry=self.registry, buckets=buckets)

    def _of(self, metric: Any, **labels: str) -> Any:
        """The series of a metric with these labels."""
        values = self._values
        return metric.labels(
            **{name: one if one in values[name] else OTHER for name, one in labels.items()}
        )

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry).decode()

    def serve(self, host: str = "127.0.0.1", port: int = 0, *, open_to_all: bool = False) -> int:
        """Serve them over HTTP until ``close``; returns the port. See ``MetricsServer``."""
        self._server = MetricsServer(self.registry, host, port, open_to_all=open_to_all)
        return self._server.port

    def close(self) -> None:
        """Serve them no longer; called again, it does nothing."""
        server, self._server = self._server, None
        if server:
            server.close()


class Metrics(Exposed):
    """Metrics of an edge agent.

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
        super().__init__(arm=[str(arm) for arm in arms])
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        what = ("modality", "evidence")
        self._decisions = counter("decisions_total", "Decisions of the scheduler.", "modality")
        self._chosen = counter("arm_chosen_total", "Decisions for each arm.", "arm")
        says = "Arms certified to be within the limit; NaN if the rule certifies none."
        self._safe_arms = gauge("safe_arms", says, "modality")
        says = "1 if no arm is held to meet the limit, else 0."
        self._infeasible = gauge("infeasible", says, "modality")
        self._tasks = counter("tasks_total", "Tasks encoded and measured.", *what)
        says = "Latency of encoding one task."
        self._latency = histogram("encode_latency_seconds", says, LATENCY_S, *what)
        says = "Tasks whose measured latency was above the limit."
        self._violations = counter("violations_total", says, *what)
        says = "Energy of encoding, by the arm that took it."
        self._energy = counter("energy_joules_total", says, "arm", "evidence")
        says = "Energy of encoding one task, where the meter was there."
        self._task_energy = histogram("task_energy_joules", says, ENERGY_J, *what)
        says = "Tasks whose encoding failed, by arm and class."
        self._failures = counter("failures_total", says, "arm", "why")
        says = "Limit on the latency of encoding; NaN before the first."
        self._limit = gauge("limit_seconds", says)
        gauge("violation_rate", "Share of tasks that may be above the limit.").set(violation_rate)
        says = "From the request to the end of its answer."
        self._answer = histogram("answer_latency_seconds", says, ANSWER_S, "evidence")
        says = "From the request to its answer's first token."
        self._first_token = histogram("first_token_latency_seconds", says, ANSWER_S, "evidence")
        self._waiting = gauge("queue_waiting", "Tasks in the queue.")
        self._running = gauge("queue_running", "Tasks being encoded or answered.")
        says = "Until all had its turn, as predicted."
        self._backlog = gauge("queue_backlog_seconds", says)
        self._shed = counter("shed_total", "Requests that were not served, by reason.", "reason")
        self._alarms = counter("alarms_total", "Alarms raised, by kind.", "kind")
        says = "1 if the energy meter reads, 0 if not, NaN if unknown."
        self._meter_up = gauge("meter_up", says)
        says = "1 if the journal takes writes, 0 if not, NaN if unknown."
        self._journal_up = gauge("journal_up", says)
        self._journal_bytes = gauge("journal_bytes", "Size of the journal on disk.")
        for unknown in (self._limit, self._meter_up, self._journal_up, self._journal_bytes):
            unknown.set(math.nan)  # no alert fires on it

    def decided(self, decision: Decision, modality: str) -> None:
        """The scheduler chose an arm."""
        self._of(self._decisions, modality=modality).inc()
        self._of(self._chosen, arm=str(decision.arm)).inc()
        safe = math.nan if decision.safe_arms is None else decision.safe_arms
        self._of(self._safe_arms, modality=modality).set(safe)
        self._of(self._infeasible, modality=modality).set(decision.infeasible)

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

        The energy is None, NaN or 0 if the meter failed; its evidence is by default that of the
        latency. ValueError if the latency is no finite number above 0.
        """
        latency_s = check_quantity("latency_s", latency_s)
        task = {"modality": modality, "evidence": evidence}
        self._of(self._tasks, **task).inc()
        self._of(self._latency, **task).observe(latency_s)
        self._of(self._violations, **task).inc(latency_s > limit_s)
        self._limit.set(limit_s)
        metered = energy_j is not None and math.isfinite(energy_j) and energy_j > 0
        self.meter(metered)
        if metered:
            task["evidence"] = energy_evidence or evidence
            self._of(self._task_energy, **task).observe(energy_j)
            self._of(self._energy, arm=str(arm), evidence=task["evidence"]).inc(energy_j)

    def failed(self, arm: Arm, why_class: str) -> None:
        """A task could not be encoded: ``raised``, ``crashed``, ``hung``, ``memory`` or other."""
        self._of(self._failures, arm=str(arm), why=why_class).inc()

    def answered(self, total_s: float, first_token_s: float | None, evidence: str) -> None:
        """An answer is complete; the first token is None if it has none.

        The evidence is that of the encoding: a simulated latency makes the whole simulated.
        """
        self._of(self._answer, evidence=evidence).observe(check_quantity("total_s", total_s))
        if first_token_s is not None:
            first_token_s = check_quantity("first_token_s", first_token_s)
            self._of(self._first_token, evidence=evidence).observe(first_token_s)

    def shed(self, reason: str) -> None:
        """A request was refused, or given up, for one of ``SHED``."""
        self._of(self._shed, reason=reason).inc()

    def queue(self, waiting: int, running: int, backlog_s: float) -> None:
        """State of the queue."""
        self._waiting.set(waiting)
        self._running.set(running)
        self._backlog.set(backlog_s)

    def alarm(self, kind: str) -> None:
        """Something is wrong: one of ``ALARMS``."""
        self._of(self._alarms, kind=kind).inc()

    def meter(self, is_up: bool) -> None:
        """Whether the energy meter reads."""
        self._meter_up.set(is_up)

    def journal(self, size_bytes: float, ok: bool) -> None:
        """Size of the journal, and whether it takes writes."""
        self._journal_bytes.set(size_bytes)
        self._journal_up.set(ok)


class FrontMetrics(Exposed):
    """Metrics of a front.

    Parameters
    ----------
    agents
        All that it may ask: one series each.
    """

    def __init__(self, agents: Iterable[str]) -> None:
        super().__init__(agent=list(agents))
        self._placed = self._counter("front_placed_total", "Tasks sent to each agent.", "agent")
        says = "Tasks taken from an agent that did not finish them."
        self._moved = self._counter("front_moved_total", says, "agent")
        says = "Requests that no agent was asked for, by reason."
        self._shed = self._counter("front_shed_total", says, "reason")
        says = "Agents that answer (up), or do not (down)."
        self._agents = self._gauge("front_agents", says, "state")
        name, says = "front_answer_latency_seconds", "From the request to the end of its answer."
        self._answer = self._histogram(name, says, ANSWER_S, "evidence")

    def placed(self, agent: str) -> None:
        """A task went to this agent."""
        self._of(self._placed, agent=agent).inc()

    def moved(self, agent: str) -> None:
        """A task left this agent, which did not finish it."""
        self._of(self._moved, agent=agent).inc()

    def shed(self, reason: str) -> None:
        """A request was refused, for one of ``SHED``."""
        self._of(self._shed, reason=reason).inc()

    def agents(self, up: int, down: int) -> None:
        """How many agents answer, and how many do not."""
        self._of(self._agents, state="up").set(up)
        self._of(self._agents, state="down").set(down)

    def answered(self, total_s: float, evidence: str) -> None:
        """An answer is complete; the evidence is that of its runs, as the agent tells it."""
        total_s = check_quantity("total_s", total_s)
        self._of(self._answer, evidence=evidence).observe(total_s)


REQUEST_S = 5.0  # for a whole request and its answer, however slowly either side goes
AT_ONCE = 16  # connections; more are closed unread


class MetricsServer(socketserver.ThreadingTCPServer):
    """Serves the metrics of a registry until it is closed.

    Parameters
    ----------
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

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * AT_ONCE  # else a burst would wait for its packets to be sent again

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
        host = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._request_s = request_s
        handler: Any = type("Handler", (_Handler,), {"registry": registry, "timeout": request_s})
        super().__init__((host, port), handler)
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
