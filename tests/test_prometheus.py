"""Prometheus's own tool reads the metrics, the queries of the dashboard and the alert rules."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from mllm_sched import ArmSpace, paths
from mllm_sched.edge.monitor import FrontMetrics, Metrics

pytestmark = pytest.mark.slow

ALERTS = paths.PACKAGE / "edge" / "alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
PACKAGE = "prometheus"


@pytest.fixture(scope="module")
def promtool():
    """Runs promtool: an installed one, else Debian's, unpacked beside the caches."""
    program = shutil.which("promtool")
    if program is None:
        unpacked = paths.CACHE / "debian" / PACKAGE
        if not unpacked.exists():
            unpack(unpacked)
        program = unpacked / "usr" / "bin" / "promtool"

    def run(*arguments, given=None):
        command = [program, *map(str, arguments)]
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


@pytest.mark.parametrize(
    "metrics", [Metrics(ArmSpace.agx_orin()), FrontMetrics(["edge-1"])], ids=["agent", "front"]
)
def test_metrics_are_as_prometheus_would_have_them(promtool, metrics):
    promtool("check", "metrics", given=metrics.text())


def test_every_query_of_the_dashboard_is_valid(promtool, tmp_path):
    panels = json.loads((paths.PACKAGE / "edge" / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


def test_every_alert_fires_when_it_should_and_only_then(promtool):
    assert f"{len(RULES)} rules found" in promtool("check", "rules", ALERTS)
    cases = paths.ROOT / "tests" / "alert_cases.yml"
    promtool("test", "rules", cases)
    tested = yaml.safe_load(cases.read_text())["tests"]
    checks = [check for case in tested for check in case["alert_rule_test"]]
    for rule in RULES:
        mine = [check for check in checks if check["alertname"] == rule["alert"]]
        assert {bool(each.get("exp_alerts")) for each in mine} == {True, False}, rule["alert"]
