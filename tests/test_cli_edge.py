"""The commands of the running system, as somebody types them."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from mllm_sched import cli, open_device
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.edge.system import LocalSystem
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.subprocess_worker import Child

GOOD = {
    "name": "edge-1",
    "listen": "127.0.0.1:0",
    "device": "agx-orin-sim",
    "model": "small-llava",
    "server": "127.0.0.1:1",
    "scheduler": {"limit_s": 0.2},
    "journal": {"path": "edge-1.journal"},
}

SPACE = open_device("agx-orin-sim", power_levels=[15, 30], components=["gpu", "dla"]).space


@pytest.fixture
def write(tmp_path):
    def written(name="agent.yaml", **changes):
        file = tmp_path / name
        file.write_text(yaml.safe_dump({**GOOD, **changes}))
        return str(file)

    return written


def journal_of(path, tasks):
    with Journal(path) as journal:
        learner = Learner(journal, SchedulerSpec("ucb", SPACE, {"latency_s": 0.2}))
        for number in range(tasks):
            decision = learner.ask([f"ana/{number}/0"])
            facts = {"modality": "image", "encoder": "resnet-50", "evidence": "simulated"}
            learner.tell(decision.id, latency_s=0.1, energy_j=1.0, facts=facts)
    return path


def test_check_explains_a_configuration_and_starts_nothing(write, tmp_path, capsys):
    with FakeJetson(tmp_path / "board") as board:
        (board.root / "sys/class/thermal/thermal_zone3/temp").write_text("61500\n")
        live = {"device": "agx-orin", "device_settings": {"root": str(board.root)}}
        assert cli.main(["agent", write(**live), "--check"]) == 0
    said = capsys.readouterr().out
    for words in (
        "agent edge-1 listens on 127.0.0.1:0, no metrics",
        "users: anybody, as one user without limits",
        "component(3) x power_w(4) x load(5) = 60 arms), mode MAXN",
        "temperature 61.5 C",
        "latency simulated, energy simulated",
        "encoding within 0.2 s",
        "trusted: component=gpu, power_w=60, load=1.0",
        "edge-1.journal: none yet",
        "LLM server 127.0.0.1:1: does not answer now",
    ):
        assert words in said
    assert not (tmp_path / "edge-1.journal").exists()


def test_check_starts_no_encoders_and_knows_whether_the_journal_fits(
    write, tmp_path, capsys, monkeypatch
):
    journal_of(tmp_path / "edge-1.journal", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Child, "start", lambda child: pytest.fail("an encoder was started"))
        assert cli.main(["agent", write(), "--check"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "edge-1.journal" in line)
    assert "1 measurement of another scheduler, so it will be refused (name: ucb, here" in line
    assert "power_w: [15, 30] log=True ['15W', '30W'], here [15, 30, 50, 60]" in line
    assert len(line) - len(str(tmp_path)) < 350
    assert cli.main(["agent", write()]) == 2
    said = capsys.readouterr().err.strip()
    assert "of another scheduler (name: ucb, here adaptive-safe-gp; " in said
    assert len(said) - len(str(tmp_path)) < 450


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "toaster"}, "device 'toaster': expected one of agx-orin-sim, host"),
        ({"model": "huge"}, "model 'huge': expected one of small-llava"),
        ({"modalities": ["audio"]}, "no encoder for audio"),
        (
            {"device_settings": {"speeed": 2}},
            "unknown setting 'speeed'; expected some of accounting",
        ),
        ({"device_settings": {"noise_seed": 1}}, "noise_seed: it is called seed now"),
        (
            {"device": "host", "device_settings": {"encoder": "tiny-clip"}},
            "'encoder'; expected some of component, open_timeout_s, repeats, timeout_s",
        ),
        ({"device": "agx-orin", "device_settings": {"window_s": 1}}, "unknown setting 'window_s'"),
        ({"scheduler": {"limit_s": 0.2, "trusted": [{"component": "npu"}]}}, "scheduler.trusted"),
        ({"scheduler": {"limit_s": 0.2, "name": "magic"}}, "scheduler 'magic': expected one of"),
        ({"device": "agx-orin"}, "this is no Jetson AGX Orin"),
        ({"users_file": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_starts(write, changes, said, capsys):
    assert cli.main(["agent", write(**changes), "--check"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_front_serves_until_it_is_told_to_stop_and_logs_in_json(tmp_path):
    file = tmp_path / "front.yaml"
    front = {"name": "front", "listen": "127.0.0.1:0", "agents": ["127.0.0.1:1"]}
    file.write_text(yaml.safe_dump(front))
    command = [sys.executable, "-m", "mllm_sched.cli", "front", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "front-started" in [json.loads(line)["event"] for line in log.splitlines()]


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


def test_the_token_of_a_front_is_for_its_owner_alone(tmp_path):
    token = tmp_path / "front.token"
    token.write_text("of before")
    token.chmod(0o644)
    LocalSystem(tmp_path, {"edge-1": {}}, front=True, users={"ana": {}})
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() != "of before"


def test_an_export_says_what_is_in_it_and_which_arms_lack(tmp_path, capsys):
    out, measured = tmp_path / "out.csv", journal_of(tmp_path / "a.journal", 6)
    assert cli.main(["journal", str(measured), str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: 6 measurements"
    assert {"  component: gpu", "  power_w: 15, 30"} < set(said)
    lacks = said.index("  4 arms of these levels lack a measurement:")
    arms = {str(arm) for arm in SPACE}
    assert len(said[lacks + 1 :]) == 4 and {line.strip() for line in said[lacks + 1 :]} < arms


def test_the_dashboard_is_printed_as_json(capsys):
    assert cli.main(["dashboard"]) == 0
    assert json.loads(capsys.readouterr().out)["panels"]
