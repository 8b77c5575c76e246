"""NVML against an imitation of NVIDIA's library, built here from C."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_sched.harness.fake_jetson.waveforms import Pulses
from mllm_sched.harness.meters import open_meter
from mllm_sched.harness.nvml import NvmlCounterMeter, NvmlRails
from mllm_sched.harness.reading import MeterError

POWER = Pulses(60.0, 260.0, 0.7, 0.3)  # as fake_nvml.c has it
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(
    COMPILER is None and sys.platform == "linux", reason="the imitated library needs a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The imitation, loaded under the name by which pynvml looks for the real one."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("the real library is here")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    options = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([COMPILER, *options, source, "-o", built, "-lm"], check=True)
    yield ctypes.CDLL(str(built))
    os.environ["FAKE_NVML"] = "no driver"  # it stays loaded: the tests that follow find no card


@pytest.fixture
def card(library, monkeypatch):
    """Say what is wrong with the card."""
    monkeypatch.delenv("FAKE_NVML", raising=False)
    return lambda what: monkeypatch.setenv("FAKE_NVML", what)


def test_without_a_driver_there_is_one_clear_line(card):
    card("no driver")
    with pytest.raises(OSError, match="no NVIDIA graphics card can be read: Driver Not Loaded"):
        open_meter(kind="nvml")


def test_the_counter_is_used_where_there_is_one(card):
    meter = open_meter(kind="nvml")
    assert isinstance(meter, NvmlCounterMeter)
    assert meter.evidence == "measured" and "energy counter of Imitated Card" in meter.source
    began = time.monotonic()
    meter.start()
    time.sleep(1.5)
    reading = meter.stop()
    truth_j = POWER.energy_j(began, began + reading.duration_s)
    assert reading.low_j <= truth_j <= reading.high_j
    assert reading.energy_j == pytest.approx(truth_j, abs=300 * 0.06)
    assert reading.high_j - reading.low_j < 2 * 300 * 1.25 * 0.12


def test_power_is_sampled_where_there_is_no_counter(card):
    card("no counter")
    meter = open_meter(kind="nvml")
    assert "Imitated Card" in meter.source
    began = time.monotonic()
    meter.start()
    time.sleep(2)
    reading = meter.stop()
    truth_j = POWER.energy_j(began, began + reading.duration_s)
    assert reading.low_j <= truth_j <= reading.high_j
    assert reading.energy_j == pytest.approx(truth_j, rel=0.03)


def test_without_the_instant_field_the_mean_of_a_second_is_read(card):
    watts = NvmlRails().read()[0]
    assert watts in (60.0, 260.0)
    card("no instant")
    assert 60 < NvmlRails().read()[0] < 260


def test_a_card_that_is_lost_is_told(card):
    counter, sampled = NvmlCounterMeter(), NvmlRails()
    counter.start()
    card("lost")
    with pytest.raises(MeterError, match="cannot be read any more: GPU is lost"):
        counter.stop()
    with pytest.raises(OSError, match="cannot be read any more: GPU is lost"):
        sampled.read()


def test_a_driver_that_was_reloaded_is_told(card):
    meter = NvmlCounterMeter()
    meter.start()
    card("reset")
    with pytest.raises(MeterError, match="went back: its driver was reloaded"):
        meter.stop()
