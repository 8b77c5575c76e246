import signal
import subprocess
import sys

import pytest

from mllm_sched.harness.clocks import RECORD, Clocks
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.nvpmodel import ClockError

GPU = {
    5: "sys/devices/17000000.ga10b/devfreq/17000000.ga10b",
    6: "sys/devices/platform/17000000.gpu/devfreq_dev",
}
EMC = {5: "sys/kernel/nvpmodel_emc_cap/emc_iso_cap", 6: "sys/kernel/nvpmodel_clk_cap/emc"}


@pytest.fixture
def board(tmp_path):
    return FakeJetson(tmp_path / "board")


@pytest.fixture
def clocks(board):
    clocks = Clocks(board.root)
    yield clocks
    clocks.close()


def snapshot(board):
    """Every file that clocks are set by, and the mode."""
    folders = ("sys/devices", "sys/kernel", "var/lib/nvpmodel")
    files = [file for folder in folders for file in (board.root / folder).rglob("*")]
    return {str(file): file.read_text().strip() for file in files if file.is_file()}


def gpu_hz(board, jetpack=6):
    return int((board.root / GPU[jetpack] / "max_freq").read_text())


@pytest.mark.parametrize("jetpack", [5, 6])
def test_a_level_is_switched_where_it_can_be_and_else_imitated_and_named_so(tmp_path, jetpack):
    board = FakeJetson(tmp_path, jetpack=jetpack)
    clocks, cores = Clocks(board.root), board.root / "sys/devices/system/cpu"
    assert clocks.set_level(50) == "mode:MODE_50W" and gpu_hz(board, jetpack) == 816_000_000
    assert clocks.set_level(15) == "caps:MODE_15W" and gpu_hz(board, jetpack) == 408_000_000
    assert (cores / "cpu4/online").read_text().strip() == "0"
    platform = "platform/" if jetpack == 6 else ""
    assert (board.root / f"sys/devices/{platform}gpu.0/tpc_pg_mask").read_text().strip() == "0"
    assert not (board.root / "var/run/reboot-requested").exists()
    assert clocks.set_level(60) == "mode:MAXN" and gpu_hz(board, jetpack) == 1_300_500_000
    assert (cores / "cpu4/online").read_text().strip() == "1"
    assert int((board.root / EMC[jetpack]).read_text()) >= 3_199_000_000
    clocks.close()
    with pytest.raises(ValueError, match="when they were closed"):
        clocks.set_level(15)


def test_clocks_are_put_back_even_where_the_mode_is_not(board, clocks):
    before = gpu_hz(board)
    clocks.set_level(50)
    program = board.root / "usr/sbin/nvpmodel"
    answers = program.read_text()
    program.write_text(
        answers.replace("if mask(modes[now][1]) != mask(modes[wanted][1]):", "if wanted == 0:")
    )
    with pytest.raises(ClockError, match="asks for a reboot"):
        clocks.restore()
    assert gpu_hz(board) == before and (board.root / RECORD).exists()
    program.write_text(answers)


def test_a_clock_between_steps_becomes_the_step_below(board):
    configuration = board.root / "etc/nvpmodel.conf"
    text = configuration.read_text().replace("GPU MAX_FREQ 408000000", "GPU MAX_FREQ 420750000")
    configuration.write_text(text)
    clocks = Clocks(board.root)
    clocks.set_level(15)
    assert gpu_hz(board) == 408_000_000
    clocks.close()


def test_a_level_that_cannot_be_set_is_refused_with_the_way_out(clocks):
    with pytest.raises(ClockError, match=r"MODE_15W needs a reboot. Boot into it with `nvpmodel"):
        clocks.set_level(15, imitate=False)
    with pytest.raises(ValueError, match=r"power_w=20: the board has 15 \(MODE_15W\), 30"):
        clocks.set_level(20)


def test_a_release_that_asks_for_a_reboot_all_the_same_is_imitated(board, clocks):
    """Some do so for modes with the same mask; asked, they wait for an answer."""
    program = board.root / "usr/sbin/nvpmodel"
    text = program.read_text().replace(
        "if mask(modes[now][1]) != mask(modes[wanted][1]):", "if now != wanted:"
    )
    program.write_text(text)
    assert clocks.set_level(50) == "caps:MODE_50W" and gpu_hz(board) == 816_000_000
    clocks.close()
    assert gpu_hz(board) == 1_300_500_000


def test_closing_puts_everything_back(board):
    subprocess.run([board.root / "usr/bin/jetson_clocks"], check=True)
    before = snapshot(board)
    clocks = Clocks(board.root)
    assert clocks.state() == {
        "mode": "MAXN",
        "gpu_clock_pinned": "True",
        "emc_hz": "3199000000",
        "fan_pwm": "60",
    }
    for level in (50, 15):
        clocks.set_level(level)
    assert snapshot(board) != before
    clocks.close()
    clocks.close()
    assert snapshot(board) == before and not (board.root / RECORD).exists()


@pytest.mark.parametrize("command", [["bin/jetson_clocks"], ["sbin/nvpmodel", "-m", "0"]])
def test_what_another_program_changes_is_seen(board, clocks, command):
    clocks.set_level(50)
    assert not clocks.changed()
    subprocess.run([board.root / "usr" / command[0], *command[1:]], check=True)
    assert clocks.changed()
    assert clocks.set_level(50) == "mode:MODE_50W"
    assert not clocks.changed() and gpu_hz(board) == 816_000_000


ENDS = """
import signal, sys, time
from pathlib import Path
from mllm_sched.harness.clocks import Clocks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
clocks = Clocks(Path(sys.argv[1]))
clocks.set_level(15)
print("set", flush=True)
{end}
"""


def started(board, end="time.sleep(60)"):
    """A process that has set a level."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDS.format(end=end), str(board.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "set\n"
    return process


@pytest.mark.parametrize("end", ["an error", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_everything_is_put_back_when_the_process_ends(board, end):
    before = snapshot(board)
    process = started(board, "raise RuntimeError" if end == "an error" else "time.sleep(60)")
    if end != "an error":
        process.send_signal(end)
    process.wait(timeout=30)  # it would sleep longer
    assert snapshot(board) == before and not (board.root / RECORD).exists()
    assert end in ("an error", signal.SIGINT) or process.returncode == 128 + end


def test_one_run_at_a_time_and_after_kill_9_the_next_puts_everything_back(board):
    before, process = snapshot(board), started(board)
    with pytest.raises(ClockError, match="another run is using the clocks"):
        Clocks(board.root)
    process.kill()
    process.wait()
    assert gpu_hz(board) == 408_000_000
    clocks = Clocks(board.root)
    assert snapshot(board) == before
    clocks.close()


def test_after_a_reboot_the_record_is_dropped(board):
    process = started(board)
    process.kill()
    process.wait()
    (board.root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    clocks = Clocks(board.root)
    assert gpu_hz(board) == 408_000_000 and not (board.root / RECORD).exists()
    clocks.close()


def test_a_clock_that_is_not_taken_is_named(board, clocks, monkeypatch):
    file = board.root / GPU[6] / "max_freq"
    text = type(file).write_text

    def deaf(self, *arguments, **settings):
        return 0 if self == file else text(self, *arguments, **settings)

    monkeypatch.setattr(type(file), "write_text", deaf)
    with pytest.raises(ClockError, match=r"max_freq: wrote 408000000, it shows 1300500000"):
        clocks.set_level(15)
    monkeypatch.undo()


def test_a_program_that_fails_or_is_not_there_is_told(board, clocks):
    program = board.root / "usr/sbin/nvpmodel"
    program.write_text("#!/bin/sh\necho NVPM ERROR: no; exit 1\n")
    with pytest.raises(ClockError, match="nvpmodel -q failed: NVPM ERROR: no"):
        clocks.set_level(15)
    program.unlink()
    with pytest.raises(ClockError, match=r"nvpmodel -q: .*No such file"):
        clocks.set_level(15)


def test_a_machine_without_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nvpmodel\.conf"):
        Clocks(tmp_path)


def test_the_gpu_is_kept_awake_while_its_clocks_are_set(board, clocks, monkeypatch):
    control = board.root / "sys/devices/platform/gpu.0/power/control"
    limit, written, text = board.root / GPU[6] / "max_freq", [], type(control).write_text

    def watched(self, value, *arguments, **settings):
        if self in (control, limit):
            written.append((self.name, value))
        return text(self, value, *arguments, **settings)

    monkeypatch.setattr(type(control), "write_text", watched)
    clocks.set_level(15)
    assert written[:3] == [("control", "on"), ("max_freq", "408000000"), ("control", "auto")]
    monkeypatch.undo()
