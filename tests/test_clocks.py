import signal
import subprocess
import sys

import pytest

from mllm_sched.harness.clocks import RECORD, ClockError, Clocks
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.thermals import Thermals

GPU = {
    5: "sys/devices/17000000.ga10b/devfreq/17000000.ga10b",
    6: "sys/devices/platform/17000000.gpu/devfreq_dev",
}


@pytest.fixture
def board(tmp_path):
    return FakeJetson(tmp_path / "board")


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
    clocks = Clocks(board.root)
    assert clocks.set_level(50) == "mode:MODE_50W" and gpu_hz(board, jetpack) == 816_000_000
    assert clocks.set_level(15) == "caps:MODE_15W" and gpu_hz(board, jetpack) == 408_000_000
    assert (board.root / "sys/devices/system/cpu/cpu4/online").read_text().strip() == "0"
    assert clocks.set_level(60) == "mode:MAXN" and gpu_hz(board, jetpack) == 1_300_500_000
    assert (board.root / "sys/devices/system/cpu/cpu4/online").read_text().strip() == "1"
    assert clocks.current().name == "MAXN"
    clocks.close()


@pytest.mark.parametrize(("jetpack", "level"), [(5, 30), (6, 50)])
def test_no_limit_on_the_memory_is_none(tmp_path, jetpack, level):
    board = FakeJetson(tmp_path, jetpack=jetpack)
    caps = ("nvpmodel_emc_cap/emc_iso_cap", "nvpmodel_clk_cap/emc")
    clocks = Clocks(board.root)
    clocks.set_level(15)
    clocks.set_level(level)
    cap = board.root / "sys/kernel" / caps[jetpack == 6]
    assert int(cap.read_text()) >= 3_199_000_000
    clocks.close()


def test_clocks_are_put_back_even_where_the_mode_is_not(board):
    before = gpu_hz(board)
    clocks = Clocks(board.root)
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
    clocks.close()


def test_caps_never_touch_what_needs_a_reboot(board):
    clocks = Clocks(board.root)
    clocks.set_level(15)
    mask = board.root / "sys/devices/platform/gpu.0/tpc_pg_mask"
    assert mask.read_text().strip() == "0"
    assert not (board.root / "var/run/reboot-requested").exists()
    clocks.close()


def test_a_clock_between_steps_becomes_the_step_below(board):
    configuration = board.root / "etc/nvpmodel.conf"
    text = configuration.read_text().replace("GPU MAX_FREQ 408000000", "GPU MAX_FREQ 420750000")
    configuration.write_text(text)
    clocks = Clocks(board.root)
    clocks.set_level(15)
    assert gpu_hz(board) == 408_000_000
    clocks.close()


def test_without_imitation_a_level_that_needs_a_reboot_is_refused_with_the_way_out(board):
    clocks = Clocks(board.root)
    with pytest.raises(ClockError, match=r"MODE_15W needs a reboot. Boot into it with `nvpmodel"):
        clocks.set_level(15, imitate=False)
    assert clocks.set_level(50, imitate=False) == "mode:MODE_50W"
    clocks.close()


def test_a_release_that_asks_for_a_reboot_all_the_same_is_imitated(board):
    """Some do so for modes with the same mask; asked, they wait for an answer."""
    program = board.root / "usr/sbin/nvpmodel"
    text = program.read_text().replace(
        "if mask(modes[now][1]) != mask(modes[wanted][1]):", "if now != wanted:"
    )
    program.write_text(text)
    clocks = Clocks(board.root)
    assert clocks.set_level(50) == "caps:MODE_50W" and gpu_hz(board) == 816_000_000
    clocks.close()
    assert gpu_hz(board) == 1_300_500_000


def test_an_unknown_level_lists_those_there_are(board):
    clocks = Clocks(board.root)
    with pytest.raises(ValueError, match=r"power_w=20: the board has 15 \(MODE_15W\), 30"):
        clocks.set_level(20)
    clocks.close()


@pytest.mark.parametrize("pinned", [False, True])
def test_closing_puts_everything_back(board, pinned):
    if pinned:
        subprocess.run([board.root / "usr/bin/jetson_clocks"], check=True)
    before = snapshot(board)
    clocks = Clocks(board.root)
    assert clocks.state() == {
        "mode": "MAXN",
        "gpu_clock_pinned": str(pinned),
        "emc_hz": "3199000000",
        "fan_pwm": "60",
    }
    for level in (50, 15):
        clocks.set_level(level)
    assert snapshot(board) != before
    clocks.close()
    clocks.close()
    assert snapshot(board) == before and not (board.root / RECORD).exists()


ENDS = """
import os, signal, sys, time
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


def kill(process):
    process.kill()
    process.wait()


@pytest.mark.parametrize("end", ["", "raise RuntimeError"])
def test_everything_is_put_back_when_the_process_ends(board, end):
    before = snapshot(board)
    started(board, end).wait(timeout=30)
    assert snapshot(board) == before and not (board.root / RECORD).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_everything_is_put_back_on_a_signal(board, number):
    before = snapshot(board)
    process = started(board)
    process.send_signal(number)
    process.wait(timeout=30)  # it would sleep longer
    assert snapshot(board) == before and not (board.root / RECORD).exists()
    assert number == signal.SIGINT or process.returncode == 128 + number


def test_after_kill_9_the_next_start_puts_everything_back(board):
    before = snapshot(board)
    kill(started(board))
    assert gpu_hz(board) == 408_000_000
    clocks = Clocks(board.root)
    assert snapshot(board) == before
    clocks.close()


def test_after_a_reboot_the_record_is_dropped(board):
    kill(started(board))
    (board.root / "proc/sys/kernel/random/boot_id").write_text("another\n")
    clocks = Clocks(board.root)
    assert gpu_hz(board) == 408_000_000 and not (board.root / RECORD).exists()
    clocks.close()


def test_two_runs_may_not_set_clocks_at_once(board):
    process = started(board)
    with pytest.raises(ClockError, match="another run is using the clocks"):
        Clocks(board.root)
    kill(process)
    clocks = Clocks(board.root)
    clocks.close()
    Clocks(board.root).close()


def test_a_clock_that_is_not_taken_is_named(board, monkeypatch):
    clocks = Clocks(board.root)
    file = board.root / GPU[6] / "max_freq"
    text = type(file).write_text

    def deaf(self, *arguments, **settings):
        return 0 if self == file else text(self, *arguments, **settings)

    monkeypatch.setattr(type(file), "write_text", deaf)
    with pytest.raises(ClockError, match=r"max_freq: wrote 408000000, it shows 1300500000"):
        clocks.set_level(15)
    monkeypatch.undo()
    clocks.close()


def test_a_program_that_fails_or_is_not_there_is_told(board):
    program = board.root / "usr/sbin/nvpmodel"
    program.write_text("#!/bin/sh\necho NVPM ERROR: no; exit 1\n")
    clocks = Clocks(board.root)
    with pytest.raises(ClockError, match="nvpmodel -q failed: NVPM ERROR: no"):
        clocks.set_level(15)
    program.unlink()
    with pytest.raises(ClockError, match=r"nvpmodel -q: .*No such file"):
        clocks.set_level(15)
    clocks.close()


def test_a_machine_without_a_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nvpmodel\.conf"):
        Clocks(tmp_path)


def test_the_boards_temperatures_and_over_current_events(board):
    thermals = Thermals(board.root)
    board.heat(61.5)
    count = thermals.throttle_count()
    assert thermals.hottest_c() == 61.5 and not thermals.throttled_since(count)
    board.over_current()
    assert thermals.throttled_since(count)


def test_the_gpu_is_kept_awake_while_its_clocks_are_set(board, monkeypatch):
    clocks = Clocks(board.root)
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
    clocks.close()
