import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mllm_sched.harness.fake_jetson.waveforms import Pulses, Ramp, constant
from mllm_sched.harness.meters import SampledMeter
from mllm_sched.harness.reading import MeterError
from mllm_sched.harness.sampler import Samples, integrate

HIGHEST_W = 75.0
LOADS = {
    "constant": constant(12.0),
    "square": Pulses(8.0, 40.0, 0.7, 0.3),
    "ramp": Ramp(8.0, 38.0, 5.0),
    "spikes of 5 ms": Pulses(10.0, 15.0, 0.1, 0.005),
    "idle-heavy": Pulses(8.0, 30.0, 2.3, 0.13),
}


class LoadRails:
    """Rails that follow known loads; the second lies within the first."""

    names, counted, range_w = ("MODULE", "MEMORY"), ("MODULE",), (0.0, HIGHEST_W)

    def __init__(self, load, delay_s=0.0):
        self.load, self.delay_s, self.closed = load, delay_s, False

    def read(self):
        if self.delay_s:
            time.sleep(self.delay_s)
        watts = float(self.load.power_w(time.monotonic()))
        return [watts, watts / 4]

    def close(self):
        self.closed = True


def drawn(load, start_s, seconds, rate_hz, rng):
    """What a sampler that is always on time would have read."""
    width = 1 / rate_hz
    strata = start_s + width * np.arange(int(np.ceil(seconds / width)))
    times = strata + width * rng.random(len(strata))
    watts = load.power_w(times) + np.zeros(len(times))
    return Samples(times, np.full(len(times), width), np.column_stack([watts, watts / 4]))


def window(load, seconds, rate_hz, rng):
    start_s = 40 * rng.random()
    samples = drawn(load, start_s, seconds, rate_hz, rng)
    reading = integrate(samples, start_s, start_s + seconds, LoadRails(load), rate_hz)
    return reading, load.energy_j(start_s, start_s + seconds)


@pytest.mark.parametrize("seconds", [0.005, 0.03, 0.13, 1.0, 10.0])
@pytest.mark.parametrize("name", LOADS)
def test_the_interval_covers_the_truth_at_any_window_length(name, seconds):
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(100):
        reading, truth_j = window(LOADS[name], seconds, 100, rng)
        covered += reading.low_j <= truth_j <= reading.high_j
    assert covered >= 93


@pytest.mark.parametrize("name", LOADS)
def test_ten_seconds_are_measured_to_one_percent(name):
    rng = np.random.default_rng(8)
    errors = []
    for _ in range(100):
        reading, truth_j = window(LOADS[name], 10.0, 100, rng)
        errors.append(abs(reading.energy_j / truth_j - 1))
    assert max(errors) <= 0.01


def test_nested_rails_are_kept_but_not_counted():
    reading, _ = window(LOADS["constant"], 1.0, 100, np.random.default_rng(0))
    assert reading.rails_j == pytest.approx({"MODULE": 12.0, "MEMORY": 3.0})
    assert reading.energy_j == pytest.approx(12.0)


def test_a_window_without_a_reading_says_that_it_knows_nothing():
    nothing = Samples(np.empty(0), np.empty(0), np.empty((0, 2)))
    reading = integrate(nothing, 5.0, 5.002, LoadRails(LOADS["constant"]), 100)
    assert (reading.low_j, reading.high_j) == pytest.approx((0.0, 0.002 * HIGHEST_W))
    assert reading.samples == 0 and "no reading" in reading.notes[0]


def test_a_gap_widens_the_interval_by_all_that_may_have_happened_in_it():
    rng, load = np.random.default_rng(0), LOADS["constant"]
    samples = drawn(load, 0.0, 10.0, 100, rng)
    kept = (samples.time_s < 4) | (samples.time_s > 6)
    gappy = Samples(samples.time_s[kept], samples.width_s[kept], samples.power_w[kept])
    whole, holed = (integrate(s, 0.0, 10.0, LoadRails(load), 100) for s in (samples, gappy))
    assert holed.longest_gap_s == pytest.approx(2.0, abs=0.05)
    assert holed.high_j - whole.high_j >= 2.0 * (HIGHEST_W - 14)
    assert holed.energy_j == pytest.approx(120.0)


def test_power_beyond_the_assumed_range_is_told_and_widens_it():
    load = LOADS["square"]
    rails = LoadRails(load)
    rails.range_w = (0.0, 20.0)
    samples = drawn(load, 0.0, 5.0, 100, np.random.default_rng(0))
    reading = integrate(samples, 0.0, 5.0, rails, 100)
    assert "left the range 0 to 20 W" in reading.notes[0]
    assert reading.low_j <= load.energy_j(0, 5) <= reading.high_j


# The sampler itself, in real time.


def test_a_real_second_is_measured():
    load = LOADS["square"]
    meter, begun_s = SampledMeter(LoadRails(load), "test"), time.monotonic()
    meter.start()
    time.sleep(1.0)
    ended_s = time.monotonic()
    reading = meter.stop()
    assert reading.low_j <= load.energy_j(begun_s, ended_s) <= reading.high_j
    assert reading.duration_s == pytest.approx(ended_s - begun_s, abs=0.2)


def test_a_meter_slower_than_asked_is_asked_less_often_and_told():
    load = LOADS["constant"]
    meter = SampledMeter(LoadRails(load, delay_s=0.03), "slow", rate_hz=100)
    meter.start()
    time.sleep(0.5)
    reading = meter.stop()
    assert 8 < reading.rate_hz < 40
    assert any("of 100 asked for" in note for note in reading.notes)
    assert reading.low_j <= 12 * reading.duration_s <= reading.high_j


def test_a_clock_that_is_set_changes_no_duration_and_is_told(monkeypatch):
    meter = SampledMeter(LoadRails(LOADS["constant"]), "test")
    meter.start()
    time.sleep(0.3)
    set_by_an_hour = time.time() + 3600
    monkeypatch.setattr("mllm_sched.harness.meters.time.time", lambda: set_by_an_hour)
    reading = meter.stop()
    assert reading.duration_s == pytest.approx(0.3, abs=0.15)
    assert reading.power_w == pytest.approx(12, rel=0.01)
    assert "the system's clock was set by +3600" in reading.notes[-1]


class BreakingRails(LoadRails):
    def __init__(self, error, after):
        super().__init__(LOADS["constant"])
        self.error, self.left = error, after

    def read(self):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().read()


@pytest.mark.parametrize(
    "error", [OSError("rail MODULE vanished: No such device"), ValueError("rail MODULE: negative")]
)
def test_a_rail_that_breaks_is_told_by_stop_and_the_next_window_starts_anew(error):
    rails = BreakingRails(error, after=5)
    meter = SampledMeter(rails, "test")
    meter.start()
    time.sleep(0.2)
    with pytest.raises(MeterError, match="rail MODULE"):
        meter.stop()
    rails.left = 10**6
    meter.start()
    time.sleep(0.1)
    assert meter.stop().power_w == pytest.approx(12)


def test_no_thread_is_left_behind():
    before = threading.active_count()
    rails = LoadRails(LOADS["constant"])
    meter = SampledMeter(rails, "test")
    meter.start()
    meter.start()
    meter.close()
    meter.close()
    assert threading.active_count() == before and rails.closed


SUSPENDED = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from test_sampler import LoadRails, LOADS, SampledMeter
meter = SampledMeter(LoadRails(LOADS["square"]), "test")
began = time.monotonic(); meter.start()
print("started", flush=True)
while time.monotonic() - began < 1.6: time.sleep(0.01)
ended = time.monotonic(); reading = meter.stop()
truth = LOADS["square"].energy_j(began, ended)
print(json.dumps([reading.longest_gap_s, reading.low_j, reading.high_j, truth]))
"""


@pytest.mark.slow
def test_a_suspended_process_shows_the_gap_and_still_covers_the_truth():
    folder = os.path.dirname(__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.7)
    os.kill(process.pid, signal.SIGCONT)
    gap_s, low_j, high_j, truth_j = json.loads(process.communicate(timeout=60)[0])
    assert gap_s >= 0.65
    assert low_j <= truth_j <= high_j
