"""The commands of the running system, as somebody types them."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mllm_sched import cli, open_device
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.scheduler_spec import SchedulerSpec

GOOD = {
    "name": "edge-1",
    "listen": "127.0.0.1:0",
    "device": "agx-orin-sim",
    "model": "small-llava",
    "server": "127.0.0.1:1",
    "scheduler": {"limit_s": 0.2},
    "journal": {"path": "edge-1.journal"},
}


@pytest.fixture
def write(tmp_path):
    def written(name="agent.yaml", **changes):
        file = tmp_path / name
        file.write_text(yaml.safe_dump({**GOOD, **changes}))
        return str(file)

    return written


def test_check_explains_a_configuration_and_starts_nothing(write, tmp_path, capsys):
    assert cli.main(["agent", write(), "--check"]) == 0
    said = capsys.readouterr().out
    for words in (
        "agent edge-1 listens on 127.0.0.1:0, metrics on None",
        "users: anybody, as one user without limits",
        "component(3) x power_w(4) x load(5) = 60 arms",
        "latency simulated, energy simulated",
        "encoding within 0.2 s",
        "trusted: component=gpu, power_w=60, load=1.0",
        "journal",
        "none yet",
        "LLM server 127.0.0.1:1: does not answer now",
    ):
        assert words in said
    assert not (tmp_path / "edge-1.journal").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "toaster"}, "device 'toaster': expected one of host, agx-orin"),
        ({"model": "huge"}, "model 'huge': expected one of small-llava"),
        ({"modalities": ["audio"]}, "no encoder for audio"),
        ({"device_settings": {"speeed": 2}}, "unknown setting 'speeed'; expected some of"),
        ({"scheduler": {"limit_s": 0.2, "trusted": [{"component": "npu"}]}}, "scheduler.trusted"),
        ({"scheduler": {"limit_s": 0.2, "name": "magic"}}, "scheduler 'magic': expected one of"),
        ({"device": "agx-orin"}, "this is no Jetson AGX Orin"),
        ({"users_file": "nowhere.yaml"}, "nowhere.yaml"),
        ({"limit": 3}, "limit: 3: Extra inputs"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_starts(write, changes, said, capsys):
    assert cli.main(["agent", write(**changes), "--check"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_an_agent_serves_until_it_is_told_to_stop_and_logs_in_json(write, tmp_path):
    command = [sys.executable, "-m", "mllm_sched.cli", "agent", write()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert "agent-started" in events
    assert (tmp_path / "edge-1.journal").exists()


def test_a_second_agent_on_the_same_journal_is_refused(write, tmp_path, capsys):
    with Journal(tmp_path / "edge-1.journal"):
        assert cli.main(["agent", write()]) == 2
    assert "writes it; stop that agent" in capsys.readouterr().err


def test_a_token_is_shown_once_and_stands_in_no_file(tmp_path, capsys):
    file = tmp_path / "users.yaml"
    assert cli.main(["users", str(file), "ana", "--rate", "5", "--weight", "2"]) == 0
    token = capsys.readouterr().out.strip()
    (ana,) = yaml.safe_load(file.read_text())
    assert (ana["name"], ana["rate_hz"], ana["weight"]) == ("ana", 5.0, 2.0)
    assert len(token) > 40 and token not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert cli.main(["users", str(file), "ana"]) == 2
    assert "ana stands there twice" in capsys.readouterr().err


def test_a_journal_becomes_a_trace_that_opens_as_a_device(tmp_path, capsys):
    space = open_device("agx-orin-sim", power_levels=[15, 30], components=["gpu", "dla"]).space
    spec = SchedulerSpec("ucb", space, {"latency_s": 0.2})
    path = tmp_path / "a.journal"
    with Journal(path) as journal:
        learner = Learner(journal, spec)
        for number in range(2 * len(space)):
            decision = learner.ask([f"ana/{number}/0"])
            facts = {"modality": "image", "encoder": "resnet-50", "evidence": "simulated"}
            learner.tell(decision.id, latency_s=0.1, energy_j=1.0, facts=facts)
    for name in ("out.csv", "out.parquet"):
        out = tmp_path / name
        assert cli.main(["journal", str(path), str(out), "--complete"]) == 0
        replayed = open_device(f"trace:{out}")
        assert len(replayed.space) == len(space) and replayed.evidence == "simulated"
    assert "out.csv" in capsys.readouterr().out


def test_a_front_says_which_agents_answer(tmp_path, capsys):
    file = tmp_path / "front.yaml"
    file.write_text(yaml.safe_dump({"name": "front", "agents": ["127.0.0.1:1"]}))
    begun_s = time.monotonic()
    assert cli.main(["front", str(file), "--check"]) == 0
    assert "edge agent 127.0.0.1:1: does not answer now" in capsys.readouterr().out
    assert time.monotonic() - begun_s < 30


def test_the_dashboard_is_printed_as_json(capsys):
    assert cli.main(["dashboard"]) == 0
    assert json.loads(capsys.readouterr().out)["panels"]
