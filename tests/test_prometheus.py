"""Prometheus itself scrapes an agent and a front, asks what the dashboard asks, and alerts."""

import json
import math
import subprocess

import pytest
import yaml
from prometheus_server import Prometheus, programs
from waiting import until

from mllm_sched import ArmSpace, paths
from mllm_sched.edge.monitor import FrontMetrics, Metrics
from mllm_sched.schedulers import Decision

pytestmark = pytest.mark.slow

ALERTS = paths.ROOT / "mllm_sched" / "edge" / "alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
SPACE = ArmSpace.agx_orin()
TASKS = 40  # of each turn
BROKEN = {"NoSafeArm", "AgentLost", "JournalFailing", "MeterGone", "Drift"}  # by the last turn


def promtool(*arguments):
    command = [programs() / "promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def turn(agent, front, broken=False):
    """Some tasks, one in ten of them above the limit; in the end all that can break has."""
    for number in range(TASKS):
        arm = SPACE[number % 3]
        safe_arms = 0 if broken else 5
        agent.decided(Decision(0, arm, "tested", True, None, {}, safe_arms, broken), "image")
        latency_s = 0.3 if number % 10 == 0 else 0.1
        agent.measured(arm, "image", latency_s, 3.0, 0.2, "measured", "estimated")
        agent.answered(0.8, 0.4, "measured")
        front.placed("edge-1")
        front.answered(0.9, "measured")
    agent.failed(SPACE[0], "hung")
    agent.shed("too-late")
    agent.queue(3, 2, 1.5)
    agent.journal(4096, ok=not broken)
    front.moved("edge-2")
    front.shed("queue-full")
    front.agents(1, 1)
    if broken:
        agent.alarm("drift")
        agent.meter(False)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A Prometheus that has seen two turns."""
    agent, front = Metrics(SPACE), FrontMetrics(["edge-1", "edge-2"])
    targets = {"mllm-sched": agent.serve(), "mllm-sched-front": front.serve()}
    folder = tmp_path_factory.mktemp("prometheus")
    turn(agent, front)
    try:
        with Prometheus(folder, targets, ALERTS) as server:
            seen_before = ("mllm_sched_front_agents", "mllm_sched_journal_up")  # a rate needs both
            for family in seen_before:
                until(lambda family=family: server.query(family), server.complaints)
            turn(agent, front, broken=True)
            until(lambda: server.query("mllm_sched_journal_up == 0"), server.complaints)
            until(lambda: server.query("mllm_sched_front_moved_total == 2"), server.complaints)
            yield server
    finally:
        agent.close()
        front.close()


def test_both_targets_are_up_and_scraped_without_a_complaint(watched):
    until(lambda: list(watched.query("up").values()) == [1.0, 1.0], watched.complaints)
    targets = watched.get("targets")["activeTargets"]
    assert [(one["health"], one["lastError"]) for one in targets] == [("up", "")] * 2
    assert watched.complaints() == []


def test_samples_arrive_with_the_values_that_were_told(watched):
    def value(expression):
        (number,) = watched.query(expression).values()
        return number

    assert value('mllm_sched_tasks_total{modality="image", evidence="measured"}') == 2 * TASKS
    assert value("mllm_sched_violations_total") == 2 * TASKS / 10
    estimated = 'sum(mllm_sched_energy_joules_total{evidence="estimated"})'
    assert math.isclose(value(estimated), 3.0 * 2 * TASKS)
    assert watched.query('mllm_sched_energy_joules_total{evidence="measured"}') == {}
    assert value('mllm_sched_encode_latency_seconds_bucket{le="0.1"}') == 2 * TASKS * 0.9
    assert value("mllm_sched_limit_seconds") == 0.2
    assert value('mllm_sched_front_placed_total{agent="edge-1"}') == 2 * TASKS
    assert value("count(mllm_sched_arm_chosen_total)") == len(SPACE)


def dashboard():
    return json.loads((paths.PACKAGE / "edge" / "grafana.json").read_text())


def queries():
    """Every query of the dashboard, as Grafana would send it, by its panel and its letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }


@pytest.mark.parametrize("line", queries())
def test_no_line_of_the_dashboard_is_empty(watched, line):
    expression = queries()[line]
    values = watched.query(expression).values()
    assert "$" not in expression
    assert values and not any(map(math.isnan, values)), expression


def test_what_broke_raises_its_alert_and_nothing_else_does(watched):
    def raised():
        return {alert["labels"]["alertname"] for alert in watched.get("alerts")["alerts"]}

    until(lambda: raised() >= BROKEN, lambda: raised())
    assert raised() <= BROKEN | {"ViolationsAboveRate"}  # which depends on the time it took
    (journal,) = [
        alert
        for alert in watched.get("alerts")["alerts"]
        if alert["labels"]["alertname"] == "JournalFailing"
    ]
    assert journal["state"] == "firing" and "takes no writes" in journal["annotations"]["summary"]


def test_the_rules_are_sound():
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_every_alert_fires_when_it_should_and_only_then():
    cases = paths.ROOT / "tests" / "alert_cases.yml"
    done = promtool("test", "rules", cases)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load(cases.read_text())["tests"]
    checks = [check for case in tested for check in case["alert_rule_test"]]
    for rule in RULES:
        fired = {
            bool(each.get("exp_alerts")) for each in checks if each["alertname"] == rule["alert"]
        }
        assert fired == {True, False}, rule["alert"]
