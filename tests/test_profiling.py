"""A profile survives what can happen to a day of measuring."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from itertools import count

import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.atomic_io import locked
from mllm_sched.cli import main
from mllm_sched.devices import open_device
from mllm_sched.devices.host import HostDevice
from mllm_sched.devices.jetson import JetsonDevice
from mllm_sched.experiments.comparison import task_for
from mllm_sched.experiments.profiling import dry_run, profile
from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.window import Plan
from mllm_sched.measurement import read_table

QUICK = Plan(window_s=0.02, idle_s=0, windows=2, max_windows=2, warm_up_s=0.0, target=0.5)


class QuickMeter(CpuTimeMeter):
    min_window_s = 0.02


def full(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def host(cache, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", cache)
    device = HostDevice("tiny-clip", open_meter=QuickMeter)
    yield device
    device.close()


def run(device, out, plan=QUICK, **settings):
    return read_table(profile(device, task_for(device), out, plan, **settings))


def levels_of(table, device):
    return [tuple(row) for row in table[list(device.space.names)].itertuples(index=False)]


def test_every_arm_is_measured_once_and_the_table_opens_as_a_trace(host, tmp_path):
    table = run(host, tmp_path / "t.csv")
    assert len(table) == len(host.space) == len(set(levels_of(table, host)))
    assert (table["failed"] == "").all() and (table["latency_half_s"] >= 0).all()
    assert set(table["evidence"]) == {"measured"}
    assert set(table["energy_evidence"]) == {"estimated"}
    assert set(table["provider"]) == {"CPUExecutionProvider"}
    trace = open_device(f"trace:{tmp_path / 't.csv'}")
    assert len(trace.space) == len(host.space)
    arm = trace.space.arm(precision="fp32", threads=1, batch=1)
    assert trace.expected(arm, task_for(trace)).latency_s > 0


def test_its_origin_stands_beside_a_table_and_no_second_call_measures_again(
    host, tmp_path, monkeypatch
):
    before = run(host, tmp_path / "t.csv")
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["settings"]["meter"].startswith("CPU time")
    assert record["settings"]["plan"]["target"] == 0.5
    (sitting,) = record["sittings"]
    assert "onnxruntime" in sitting["packages"] and sitting["machine"]["cores"]
    assert str(tmp_path) not in json.dumps(record)
    monkeypatch.setattr(HostDevice, "prepare", lambda *arguments: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(run(host, tmp_path / "t.csv"), before)


def test_a_table_made_with_other_settings_is_refused(host, tmp_path):
    arms = list(host.space)[:2]
    run(host, tmp_path / "t.csv", arms=arms)
    with pytest.raises(ValueError, match="made with another plan, seed; give another file"):
        run(host, tmp_path / "t.csv", Plan(idle_s=0), arms=arms, seed=3)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is no profile of this device"):
        run(host, tmp_path / "other.csv", arms=arms)


def test_two_processes_may_not_write_one_table(host, tmp_path):
    writing = locked(tmp_path / ".t.csv.lock")
    with writing, pytest.raises(ValueError, match="another process is writing"):
        run(host, tmp_path / "t.csv")


def failing(device, monkeypatch, spoil):
    """Do something to the machine before the second arm."""
    prepare, calls = device.prepare, []

    def spoiled(arm):
        facts = prepare(arm)
        calls.append(arm)
        if len(calls) == 2:
            spoil()
        return facts

    monkeypatch.setattr(device, "prepare", spoiled)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (signal.SIGSEGV, "the encoder crashed: killed by SIGSEGV"),
        (signal.SIGSTOP, "the encoder hangs: no answer in"),
    ],
)
def test_an_encoder_that_crashes_or_hangs_is_a_row_and_the_sweep_goes_on(
    host, tmp_path, monkeypatch, sent, told
):
    host.encoders.timeout_s = 1.0
    failing(host, monkeypatch, lambda: os.kill(host.encoders.pid, sent) or time.sleep(0.2))
    table = run(host, tmp_path / "t.csv")
    assert table["failed"].tolist().count("") == len(table) - 1
    assert table["failed"][1].startswith(told)
    assert read_table(tmp_path / "t.csv")["latency_s"].isna().sum() == 1


def test_failed_arms_stay_unless_they_are_asked_for_again(host, tmp_path, monkeypatch):
    failing(host, monkeypatch, lambda: os.kill(host.encoders.pid, signal.SIGKILL))
    assert (run(host, tmp_path / "t.csv")["failed"] != "").sum() == 1
    assert (run(host, tmp_path / "t.csv")["failed"] != "").sum() == 1
    table = run(host, tmp_path / "t.csv", retry_failed=True)
    assert (table["failed"] == "").all() and len(table) == len(host.space)


def test_a_full_disk_loses_nothing(host, tmp_path, monkeypatch, capsys):
    sync, calls = os.fsync, count()
    monkeypatch.setattr("os.fsync", lambda file: (full if next(calls) in (2, 3, 4) else sync)(file))
    table = run(host, tmp_path / "t.csv")
    assert len(table) == len(host.space) and (table["failed"] == "").all()
    assert "No space left on device; the row is kept" in capsys.readouterr().err
    assert not list(tmp_path.glob("*unfinished*"))


def test_rows_that_wait_for_room_survive_an_interruption(host, tmp_path, monkeypatch):
    def interrupted(arm):
        calls.append(arm)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return prepare(arm)

    calls, prepare = [], host.prepare
    monkeypatch.setattr(host, "prepare", interrupted)
    monkeypatch.setattr("os.fsync", lambda file: full(file) if len(calls) > 1 else None)
    with pytest.raises(OSError, match="all rows are in") as told:
        run(host, tmp_path / "t.csv")
    rescued = str(told.value).split("all rows are in ")[1]
    assert len(read_table(rescued)) == 3 and len(read_table(tmp_path / "t.csv")) == 1
    os.unlink(rescued)


def test_the_dry_run_lists_what_it_will_do_and_how_long_it_takes(host):
    plan = Plan(window_s=10, idle_s=5, windows=3, max_windows=6)
    listed, other = (dry_run(host, plan, list(host.space), seed=seed) for seed in (4, 5))
    assert len(listed) == len(host.space)
    assert listed["position"].tolist() == other["position"].tolist()
    assert levels_of(listed, host) != levels_of(other, host)  # the order is drawn by seed
    assert listed["minutes_at_least"].iloc[-1] == pytest.approx(len(host.space) * 41 / 60)
    assert (listed["minutes_at_most"] > listed["minutes_at_least"]).all()


# The board, imitated.


@pytest.fixture
def board(tmp_path):
    with FakeJetson(tmp_path / "board") as board:
        yield board


@pytest.fixture
def jetson(board, cache, monkeypatch):
    """Opens the imitated board as a device."""
    monkeypatch.setattr(paths, "CACHE", cache)
    with ExitStack() as opened:
        yield lambda **settings: opened.enter_context(
            closing(JetsonDevice("tiny-resnet", root=board.root, **settings))
        )


def test_a_profile_of_the_imitation_is_never_called_measured(jetson, tmp_path):
    device = jetson(rate_hz=2000)
    arms = [arm for arm in device.space if arm.load == 1.0 and arm.component == "dla"]
    run(device, tmp_path / "t.csv", arms=arms)
    table = run(device, tmp_path / "t.csv", arms=arms)  # a load of 1.0 reads 1 in the file
    assert len(table) == 4
    assert set(table["evidence"]) == set(table["energy_evidence"]) == {"simulated"}
    assert set(zip(table["power_w"], table["clocks"], strict=True)) == {
        (15, "caps:MODE_15W"),
        (30, "caps:MODE_30W"),
        (50, "mode:MODE_50W"),
        (60, "mode:MAXN"),
    }
    (sitting,) = json.loads((tmp_path / "t.json").read_text())["sittings"]
    assert sitting["state"]["mode"] == "MAXN" and sitting["state"]["emc_hz"] == "3199000000"
    assert sitting["state"]["gpu_clock_pinned"] == "False"


def test_a_rail_that_vanishes_and_returns_costs_only_the_arms_in_between(
    board, jetson, tmp_path, monkeypatch
):
    device = jetson(rate_hz=2000)
    prepare, happens = device.prepare, iter([None, board.vanish, None, board.bring_back, None])

    def eventful(arm):
        event = next(happens)
        if event == board.bring_back:
            event("VIN_SYS_5V0")
        facts = prepare(arm)
        if event == board.vanish:
            event("VIN_SYS_5V0")
        return facts

    monkeypatch.setattr(device, "prepare", eventful)
    arms = [arm for arm in device.space if arm.power_w == 60 and arm.component == "gpu"]
    table = run(device, tmp_path / "t.csv", arms=arms)
    assert [bool(row) for row in table["failed"]] == [False, True, True, False, False]
    assert table["failed"][1].startswith("rail VIN_SYS_5V0 vanished")
    assert "the meter cannot be opened again" in table["failed"][2]


def test_a_load_below_one_pauses_between_calls(jetson):
    device = jetson(rate_hz=1000, window_s=0.5)
    full, fifth = (
        device.run(device.space.arm(component="gpu", power_w=60, load=load), task_for(device))
        for load in (1.0, 0.2)
    )
    assert fifth.latency_s > 2.5 * full.latency_s


KILLED = """
import os, sys
from pathlib import Path
from mllm_sched import paths
from mllm_sched.devices.jetson import JetsonDevice
from mllm_sched.harness.window import Plan
from mllm_sched.experiments.comparison import task_for
from mllm_sched.experiments.profiling import profile

root, out, cache = (Path(name) for name in sys.argv[1:])
paths.CACHE = cache
plan = Plan(window_s=0.02, idle_s=0, windows=2, max_windows=2, warm_up_s=0.0, target=0.9)
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.setsid()
    device = JetsonDevice("tiny-resnet", root=root, rate_hz=10_000)
    arms = [arm for arm in device.space if arm.load in (0.8, 1.0)]
    profile(device, task_for(device), out, plan, arms=arms)
    device.close()
    os._exit(0)
"""


def snapshot(root):
    files = [file for file in (root / "sys/devices").rglob("*") if file.is_file()]
    return {str(file): file.read_text().strip() for file in files}


@pytest.mark.slow
def test_twenty_times_kill_9_loses_no_arm_doubles_none_and_leaves_no_clock(board, cache, tmp_path):
    """Each round starts anew, goes on where the last one was, and is killed at a random time.

    Every other one is killed a moment after it has changed a clock.
    """
    before, out = snapshot(board.root), tmp_path / "t.csv"
    runner = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(board.root), str(out), str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def begun():
        print("go", file=runner.stdin, flush=True)
        return int(runner.stdout.readline())

    dice, rows, killed, changed = random.Random(5), [], 0, 0
    while killed < 20:
        child = begun()
        while killed % 2 and snapshot(board.root) == before and os.path.exists(f"/proc/{child}"):
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.8))
        os.kill(child, signal.SIGKILL) if os.path.exists(f"/proc/{child}") else None
        killed += int(runner.stdout.readline()) == -signal.SIGKILL
        changed += snapshot(board.root) != before
        if out.exists():
            now = out.read_text().splitlines()
            assert now[: len(rows)] == rows  # what was written stays
            rows = now
            read_table(out)
        if len(rows) == 25:  # all of them: take the last away, and there is something to do
            out.write_text("\n".join(rows[:-8]) + "\n")
            rows = rows[:-8]
    begun()
    assert int(runner.stdout.readline()) == 0
    runner.communicate()
    table = read_table(out)
    assert len(table) == 24 and not table.duplicated(["component", "power_w", "load"]).any()
    assert (table["failed"] == "").all()
    assert changed > 0, "no kill found the clocks changed; the test has no power"
    assert snapshot(board.root) == before


# The command.


def test_the_command_profiles_and_says_what_it_did(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(paths, "CACHE", cache)
    out = tmp_path / "t.csv"
    quick = ["--idle-s", "0", "--windows", "2", "--max-windows", "2", "--warm-up-s", "0"]
    wanted = ["--levels", "precision=int8", "--levels", "threads=1", "--levels", "batch=1,4"]
    command = ["profile", "--device", "host", "--encoder", "tiny-clip", "--out", str(out)]
    assert main([*command, *wanted, "--dry-run"]) == 0 and not out.exists()
    assert main([*command, *wanted, *quick]) == 0
    told = capsys.readouterr().out
    assert "energy estimated" in told and "2 arms in" in told
    assert sorted(read_table(out)["batch"]) == [1, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "agx-orin-sim"], "not live: there is nothing to measure"),
        (["--levels", "threads"], "--levels threads: expected FACTOR=A,B"),
        (["--levels", "colour=red"], "unknown factor 'colour'"),
        (["--levels", "batch=3"], "batch=3: expected some of 1, 2, 4"),
        (["--windows", "1"], "one window cannot tell how it scatters"),
        (["--encoder", "tiny-clip", "--out", "t.json"], "expected a name that ends in .csv"),
        (["--encoder", "bert"], "encoder 'bert': expected one of"),
        (["--board", "x"], "--board is for agx-orin, not for host"),
        (["--device", "agx-orin", "--component", "gpu"], "--component is for host, not for agx"),
        (["--component", "gpu"], "no NVIDIA graphics card can be read"),
        (["--device", "agx-orin"], "no INA3221 power sensors; no /etc/nvpmodel.conf"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(options, words, capsys):
    assert main(["profile", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
