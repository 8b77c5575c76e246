"""Prometheus itself scrapes an agent and a front, and answers what the dashboard asks."""

import json
import math
import os
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from waiting import until

from mllm_sched import ArmSpace, paths
from mllm_sched.edge.monitor import FrontMetrics, Metrics
from mllm_sched.edge.system import free_port
from mllm_sched.schedulers import Decision

pytestmark = pytest.mark.slow

ALERTS = paths.PACKAGE / "edge" / "alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
PACKAGE = "prometheus"
SPACE = ArmSpace.agx_orin()


@pytest.fixture(scope="module")
def programs():
    """Their folder: installed ones, else Debian's, unpacked beside the caches."""
    if found := shutil.which("promtool"):
        return Path(found).parent
    unpacked = paths.CACHE / "debian" / PACKAGE
    if not unpacked.exists():
        unpack(unpacked)
    return unpacked / "usr" / "bin"


@pytest.fixture(scope="module")
def promtool(programs):
    def run(*arguments, given=None):
        command = [programs / "promtool", *map(str, arguments)]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def unpack(place):
    """Get Debian's package and unpack it there; a test that cannot have it is skipped."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("no Prometheus here, and not root on Debian: install the package prometheus")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", PACKAGE]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no Prometheus here: {' '.join(command)}: {done.stderr.strip()}")
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, Path(folder) / "out"], check=True)
        (Path(folder) / "out").rename(place)


def work(agent, front):
    """What a task tells, well and badly."""
    decision = Decision(0, SPACE[0], "tested", certified=True, bounds={}, safe_arms=5)
    agent.decided(decision, "image")
    agent.measured(SPACE[0], "image", 0.3, 3.0, 0.2, "measured", "estimated")
    agent.answered(0.8, 0.4, "measured")
    agent.failed(SPACE[0], "hung")
    agent.shed("too-late")
    agent.queue(3, 2, 1.5)
    agent.journal(4096, ok=False)
    agent.alarm("drift")
    front.placed("edge-1")
    front.answered(0.9, "measured")
    front.moved("edge-1")
    front.shed("queue-full")
    front.agents(1, 1)


@pytest.fixture(scope="module")
def ask(programs, tmp_path_factory):
    """Asks a Prometheus that scrapes an agent and a front which work meanwhile."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    agent, front = Metrics(SPACE), FrontMetrics(["edge-1"])
    scrapes = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{metrics.serve()}"]}]}
        for job, metrics in (("mllm-sched", agent), ("mllm-sched-front", front))
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings = {"global": every, "scrape_configs": scrapes, "rule_files": [str(ALERTS)]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    files = "--config.file=prometheus.yml", "--storage.tsdb.path=data"
    command = [programs / "prometheus", *files, f"--web.listen-address=127.0.0.1:{port}"]
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def get(what):
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        work(agent, front)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{what}") as answer:
                return json.load(answer)["data"]
        except OSError:  # it is not up yet
            return {}

    yield get
    server.terminate()
    server.wait(15)
    for closed in (log, agent, front):
        closed.close()


PANELS = json.loads((paths.PACKAGE / "edge" / "grafana.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]


@pytest.mark.parametrize("query", QUERIES)
def test_no_line_of_the_dashboard_is_empty(ask, query):
    asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    values = "query?" + urllib.parse.urlencode({"query": asked})
    until(lambda: ask(values).get("result"), lambda: asked)
    assert not any(math.isnan(float(one["value"][1])) for one in ask(values)["result"])


def test_what_broke_raises_its_alert(ask):
    def raised():
        return {one["labels"]["alertname"] for one in ask("alerts").get("alerts", ())}

    until(lambda: raised() >= {"Drift", "JournalFailing", "AgentLost"}, raised)


def test_every_alert_fires_when_it_should_and_only_then(promtool):
    assert f"{len(RULES)} rules found" in promtool("check", "rules", ALERTS)
    cases = paths.ROOT / "tests" / "alert_cases.yml"
    promtool("test", "rules", cases)
    tested = yaml.safe_load(cases.read_text())["tests"]
    checks = [check for case in tested for check in case["alert_rule_test"]]
    for rule in RULES:
        mine = [check for check in checks if check["alertname"] == rule["alert"]]
        assert {bool(each.get("exp_alerts")) for each in mine} == {True, False}, rule["alert"]
