"""What an agent and a front tell Prometheus, and the server that it scrapes."""

import contextlib
import functools
import itertools
import json
import math
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from waiting import until

from mllm_sched import ArmSpace, Factor, paths
from mllm_sched.edge import monitor
from mllm_sched.edge.monitor import FrontMetrics, Metrics
from mllm_sched.schedulers import Decision

SPACE = ArmSpace([Factor("component", ["gpu", "cpu"]), Factor("power_w", [15, 30])])
SECRETS = ("Bearer t0k3n-of-ann", "ann@example.org", "request-4711")
RAW = re.compile(r"mllm_sched_\w+")
OURS = [*monitor.AGENT, *monitor.FRONT]


def one(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"mllm_sched_{name}", labels)


def decision(arm, safe_arms=None, infeasible=False):
    return Decision(0, arm, "tested", False, None, {}, safe_arms, infeasible)


def used():
    """An agent's metrics and a front's, after one of everything."""
    agent, front = Metrics(SPACE), FrontMetrics(["edge-1", "edge-2"])
    agent.decided(decision(SPACE[0], safe_arms=2), "image")
    agent.measured(SPACE[0], "image", 0.15, 3.0, 0.2, "measured", "estimated")
    agent.failed(SPACE[1], "hung")
    agent.answered(1.0, 0.3, "measured")
    agent.shed("rate")
    agent.queue(3, 2, 1.5)
    agent.alarm("drift")
    agent.journal(4096, ok=True)
    front.placed("edge-1")
    front.moved("edge-1")
    front.shed("too-late")
    front.agents(1, 1)
    front.answered(1.0, "measured")
    return agent, front


@pytest.fixture
def served(monkeypatch):
    """A server of its own metrics, which cuts every request off soon: the port."""
    monkeypatch.setattr(monitor, "REQUEST_S", 0.4)
    metrics = Metrics(SPACE)
    yield metrics.serve()
    metrics.close()


def get(port, path="/metrics"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_decision_tells_its_arm_and_the_safe_set():
    agent = Metrics(SPACE)
    for safe_arms, infeasible in ((2, False), (0, True), (None, False)):
        agent.decided(decision(SPACE[0], safe_arms, infeasible), "image")
        safe = one(agent, "safe_arms", modality="image")
        assert math.isnan(safe) if safe_arms is None else safe == safe_arms
        assert one(agent, "infeasible", modality="image") == infeasible
    assert [one(agent, "arm_chosen_total", arm=str(arm)) for arm in SPACE] == [3, 0, 0, 0]


def test_before_the_first_task_counters_are_zero_and_what_is_unknown_is_nan():
    agent = Metrics(SPACE)
    assert one(agent, "shed_total", reason="too-late") == 0
    assert one(agent, "alarms_total", kind="drift") == 0
    for name in ("meter_up", "journal_up", "journal_bytes", "limit_seconds"):
        assert math.isnan(one(agent, name))


def test_a_task_counts_in_its_bucket_and_only_above_the_limit_as_a_violation():
    agent, what = Metrics(SPACE), {"modality": "audio", "evidence": "measured"}
    for latency_s in (0.2, 0.2 + 1e-9, 0.5):
        agent.measured(SPACE[0], "audio", latency_s, 1.0, 0.2, "measured", "measured")
    assert one(agent, "tasks_total", **what) == 3
    assert one(agent, "encode_latency_seconds_bucket", le="0.175", **what) == 0
    assert one(agent, "encode_latency_seconds_bucket", le="0.2", **what) == 1
    assert one(agent, "violations_total", **what) == 2
    assert one(agent, "limit_seconds") == 0.2
    assert one(agent, "meter_up") == 1


def test_energy_carries_its_own_evidence():
    agent, _ = used()
    agent.measured(SPACE[0], "image", 0.1, 2.0, 0.2, "simulated", "simulated")
    for evidence, energy_j in (("measured", None), ("estimated", 3.0), ("simulated", 2.0)):
        arm = {"arm": str(SPACE[0]), "evidence": evidence}
        assert one(agent, "energy_joules_total", **arm) == energy_j


def test_a_meter_that_fails_is_told_and_adds_no_energy():
    agent = Metrics(SPACE)
    for energy_j in (math.nan, math.inf, 0.0):
        agent.measured(SPACE[0], "image", 0.1, energy_j, 0.2, "measured", "measured")
        assert one(agent, "meter_up") == 0
    assert one(agent, "tasks_total", modality="image", evidence="measured") == 3
    assert "task_energy_joules_count" not in agent.text()


def test_secrets_that_are_fed_in_become_other_and_make_no_series():
    agent, front = used()
    stranger = ArmSpace([Factor("user", list(SECRETS))])
    for secret, arm in zip(SECRETS, stranger, strict=True):
        agent.failed(arm, secret)
        agent.measured(arm, secret, 0.1, 1.0, 0.2, secret, secret)
        for tell in (agent.shed, agent.alarm, front.placed, front.moved, front.shed):
            tell(secret)
        agent.answered(1.0, 0.5, secret)
        front.answered(1.0, secret)
    text = agent.text() + front.text()
    assert not [secret for secret in SECRETS if secret in text]
    assert one(agent, "shed_total", reason="other") == 3
    assert one(agent, "tasks_total", modality="other", evidence="other") == 3
    assert one(front, "front_placed_total", agent="other") == 3


def test_metrics_are_at_one_path_and_nothing_else_is(served):
    status, text = get(served)
    assert status == 200 and "mllm_sched_build_info" in text
    assert get(served, "/metrics?name[]=mllm_sched_violation_rate")[0] == 200
    for path in ("/", "/metrics/", "/favicon.ico", "/metrics/../etc/passwd", "/debug"):
        assert get(served, path)[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_others_than_this_machine_are_refused_unless_that_is_meant(host):
    with pytest.raises(ValueError, match="open_to_all"):
        Metrics(SPACE).serve(host)


def test_once_closed_or_served_elsewhere_the_port_is_free_again():
    metrics, threads = Metrics(SPACE), threading.active_count()
    first = metrics.serve("0.0.0.0", open_to_all=True)
    second = metrics.serve()
    assert get(second)[0] == 200
    metrics.close()
    metrics.close()
    for port in (first, second):
        with pytest.raises(OSError, match="refused"):
            get(port)
    assert threading.active_count() == threads
    assert metrics.serve(port=second) == second
    metrics.close()


def test_a_port_that_is_taken_is_an_error_and_nothing_is_left_running(served):
    threads = threading.active_count()
    with pytest.raises(OSError, match="in use"):
        Metrics(SPACE).serve(port=served)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /metrics HTTP/1.1\r\nHost: x",
        b"GET /" + b"a" * 200_000,
        b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"a" * 200_000,
        b"GET /metrics HTTP/1.1\r\n" + b"X: a\r\n" * 5000,
        b"\x16\x03\x01\x02\x00" * 100,
    ],
    ids=["silent", "half", "long line", "long header", "many headers", "TLS"],
)
def test_a_slow_or_huge_request_is_cut_off_and_hangs_nobody(served, sent):
    with socket.create_connection(("127.0.0.1", served), timeout=60) as client:
        with contextlib.suppress(OSError):  # it may be cut off while it still sends
            client.sendall(sent)
        assert get(served)[0] == 200  # while the other is there
        with contextlib.suppress(ConnectionError):
            while client.recv(65536):
                continue


def test_a_client_that_sends_a_byte_at_a_time_is_cut_off_all_the_same(served):
    with socket.create_connection(("127.0.0.1", served), timeout=60) as client:
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            drip(client)


def drip(client):
    for byte in itertools.cycle(b"GET /metrics HTTP/1.1\r\nX: a"):
        client.sendall(bytes([byte]))
        time.sleep(0.05)


def test_more_clients_than_may_be_are_turned_away_until_the_first_are_cut_off(served):
    connect = functools.partial(socket.create_connection, ("127.0.0.1", served), timeout=60)
    with contextlib.ExitStack() as clients:
        first = [clients.enter_context(connect()) for _ in range(monitor.AT_ONCE)]
        assert clients.enter_context(connect()).recv(1) == b""  # closed unread
        assert [client.recv(1) for client in first] == [b""] * monitor.AT_ONCE  # cut off
    until(lambda: answers(served))


def answers(port):
    with contextlib.suppress(OSError):
        return get(port)[0] == 200


def test_panels_and_alerts_ask_for_metrics_that_exist_and_leave_none_out():
    families = [family for metrics in used() for family in metrics.registry.collect()]
    there = {sample.name for family in families for sample in family.samples}
    dashboard = json.loads((paths.PACKAGE / "edge" / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in asked:  # an agent's of the one that is chosen
        assert ('{instance=~"$instance"}' in query) != ("mllm_sched_front_" in query), query
    shown = {name for query in asked for name in RAW.findall(query)}
    alerts = (paths.PACKAGE / "edge" / "alerts.yml").read_text()
    assert shown | set(RAW.findall(alerts)) <= there
    for ours in OURS:
        assert any(name.startswith(f"mllm_sched_{ours}") for name in shown), ours


def test_the_page_on_monitoring_names_every_metric():
    page = (paths.ROOT / "docs" / "monitoring.md").read_text()
    assert [name for name in OURS if f"`{name}`" not in page] == []
