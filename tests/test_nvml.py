"""NVML against an imitation of NVIDIA's library, built here from C."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_sched.harness.fake_jetson.board import Pulses
from mllm_sched.harness.meters import open_meter
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


@pytest.mark.parametrize(
    ("wrong", "words"), [("no driver", "Driver Not Loaded"), ("no counter", "Not Supported")]
)
def test_without_a_driver_or_a_counter_there_is_one_clear_line(card, wrong, words):
    card(wrong)
    with pytest.raises(OSError, match=f"no NVIDIA graphics card can be read: {words}"):
        open_meter(kind="nvml")


@pytest.mark.usefixtures("card")
def test_the_energy_counter_is_read():
    meter = open_meter(kind="nvml")
    assert meter.evidence == "measured" and "energy counter of Imitated Card" in meter.source
    began = time.monotonic()
    meter.start()
    time.sleep(0.5)
    reading = meter.stop()
    truth_j = POWER.energy_j(began, began + reading.duration_s)
    assert reading.low_j <= truth_j <= reading.high_j
    assert reading.energy_j == pytest.approx(truth_j, abs=300 * 0.06)
    assert reading.high_j - reading.low_j < 2 * 300 * 1.25 * 0.12


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        ("lost", "cannot be read any more: GPU is lost"),
        ("reset", "went back: its driver was reloaded"),
    ],
)
def test_a_card_that_breaks_in_mid_window_is_told(card, happens, words):
    meter = open_meter(kind="nvml")
    meter.start()
    card(happens)
    with pytest.raises(MeterError, match=words):
        meter.stop()
