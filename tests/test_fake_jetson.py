"""The imitation behaves as the board does, as far as public sources tell."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from mllm_sched.harness.fake_jetson.board import FakeJetson, Pulses, Ramp
from mllm_sched.harness.meters import open_meter
from mllm_sched.harness.reading import MeterError


@given(
    st.one_of(
        st.builds(Pulses, st.floats(0, 9), st.floats(9, 60), st.floats(0.5, 5), st.floats(0, 0.5)),
        st.builds(Ramp, st.floats(0, 9), st.floats(9, 60), st.floats(0.5, 5)),
    ),
    st.floats(0, 100),
    st.floats(0.01, 10),
)
def test_the_stated_energy_is_the_integral_of_the_power(waveform, start_s, seconds):
    times = np.linspace(start_s, start_s + seconds, 20_001)
    middles = (times[1:] + times[:-1]) / 2
    sum_j = float(np.sum(waveform.power_w(middles))) * seconds / 20_000
    assert waveform.energy_j(start_s, start_s + seconds) == pytest.approx(sum_j, rel=0.01, abs=0.05)


def test_the_sensors_follow_the_waveforms_and_a_rail_that_vanishes_is_told(tmp_path):
    load = {"VDD_GPU_SOC": Pulses(4.0, 12.0, 0.2, 0.05), "VIN_SYS_5V0": Pulses(3.6, 3.6)}
    with FakeJetson(tmp_path, load) as board:
        meter = open_meter(board.root, "ina3221")
        began = time.monotonic()
        meter.start()
        time.sleep(1.0)
        reading = meter.stop()
        truth_j = board.energy_j(began, began + reading.duration_s)
        meter.start()
        board.vanish("VDD_GPU_SOC")
        time.sleep(0.1)
        with pytest.raises(MeterError, match="rail VDD_GPU_SOC vanished"):
            meter.stop()
    assert reading.energy_j == pytest.approx(truth_j, rel=0.04)
    assert reading.low_j <= truth_j <= reading.high_j
    assert not reading.unmoved_w  # a sensor flickers even where the power does not


ORPHAN = """
import sys
from mllm_sched.harness.fake_jetson.board import FakeJetson
board = FakeJetson(sys.argv[1]); board.start()
print(board._feeder.pid, flush=True)
input()
"""


def test_the_feeder_ends_with_the_process_that_started_it(tmp_path):
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    feeder = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until(lambda: not os.path.exists(f"/proc/{feeder}/fd/0"), within_s=5)


@pytest.mark.parametrize(
    ("answer", "status", "asked"), [("", 234, None), ("no\n", 234, None), ("YES\n", 0, "1\n")]
)
def test_nvpmodel_asks_before_a_reboot_and_stays_without_a_yes(tmp_path, answer, status, asked):
    board = FakeJetson(tmp_path)
    command = [board.root / "usr/sbin/nvpmodel", "-m", "1"]
    done = subprocess.run(command, input=answer, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Golden image context" in done.stdout and "REBOOT NOW" in done.stdout
    assert (board.root / "var/lib/nvpmodel/status").read_text() == "pmode:0000\n"
    request = board.root / "var/run/reboot-requested"
    assert (request.read_text() if request.exists() else None) == asked
