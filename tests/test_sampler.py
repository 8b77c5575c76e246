import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.harness.fake_jetson.board import Pulses, Ramp
from mllm_sched.harness.reading import MeterError
from mllm_sched.harness.sampler import SampledMeter, Samples, integrate, mean_bounds

HIGHEST_W = 75.0
LOADS = {
    "constant": Pulses(12.0, 12.0),
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


def drawn(load, start_s, seconds, rng):
    """What a sampler of 100 Hz that is always on time would have read."""
    width = 0.01
    strata = start_s + width * np.arange(int(np.ceil(seconds / width)))
    times = strata + width * rng.random(len(strata))
    watts = load.power_w(times) + np.zeros(len(times))
    return Samples(times, np.full(len(times), width), np.column_stack([watts, watts / 4]))


@pytest.mark.parametrize("seconds", [0.005, 0.13, 10.0])
@pytest.mark.parametrize("name", LOADS)
def test_the_interval_covers_the_truth_and_ten_seconds_are_known_to_one_percent(name, seconds):
    rng = np.random.default_rng(7)
    covered, errors = 0, []
    for _ in range(100):
        start_s, load = 40 * rng.random(), LOADS[name]
        stop_s = start_s + seconds
        truth_j, samples = load.energy_j(start_s, stop_s), drawn(load, start_s, seconds, rng)
        reading = integrate(samples, start_s, stop_s, LoadRails(load), 100)
        covered += reading.low_j <= truth_j <= reading.high_j
        errors.append(abs(reading.energy_j / truth_j - 1))
    assert covered >= 93
    assert seconds < 10 or max(errors) <= 0.01


def test_a_window_without_a_reading_says_that_it_knows_nothing():
    nothing = Samples(np.empty(0), np.empty(0), np.empty((0, 2)))
    reading = integrate(nothing, 5.0, 5.002, LoadRails(LOADS["constant"]), 100)
    assert (reading.low_j, reading.high_j) == pytest.approx((0.0, 0.002 * HIGHEST_W))
    assert reading.samples == 0 and "no reading" in reading.notes[0]


def test_a_gap_widens_the_interval_by_all_that_may_have_happened_in_it():
    rng, load = np.random.default_rng(0), LOADS["constant"]
    samples = drawn(load, 0.0, 10.0, rng)
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
    samples = drawn(load, 0.0, 5.0, np.random.default_rng(0))
    reading = integrate(samples, 0.0, 5.0, rails, 100)
    assert "left the range 0 to 20 W" in reading.notes[0]
    assert reading.low_j <= load.energy_j(0, 5) <= reading.high_j


# The sampler itself, in real time.


def test_a_meter_slower_than_asked_is_asked_less_often_and_told():
    load = LOADS["constant"]
    meter = SampledMeter(LoadRails(load, delay_s=0.03), "slow", rate_hz=100)
    meter.start()
    time.sleep(0.5)
    reading = meter.stop()
    assert 8 < reading.rate_hz < 40
    assert any("of 100 asked for" in note for note in reading.notes)
    assert reading.low_j <= 12 * reading.duration_s <= reading.high_j


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


# Bounds on the mean.

readings = st.lists(st.floats(0, 60), min_size=1, max_size=60)


@given(readings)
def test_bounds_hold_the_mean_and_stay_within_the_range(values):
    lower, upper = mean_bounds(values, 0, 60)
    assert 0 <= lower <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= upper <= 60


def test_a_steady_load_is_not_called_certain():
    """Ten equal readings cannot exclude that half of the time passed at another power."""
    lower, upper = mean_bounds([12.0] * 10, 0, 60)
    assert upper - lower > 10
    assert mean_bounds([], 0, 60) == (0, 60)


def test_independent_readings_of_any_law_are_covered():
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        values = np.where(rng.random(200) < 0.02, 55.0, 9.0)
        lower, upper = mean_bounds(values, 0, 60)
        missed += not lower <= 9 + 46 * 0.02 <= upper
    assert missed / 300 <= 0.05


def test_readings_outside_the_range_and_empty_ranges_are_refused():
    with pytest.raises(ValueError, match="from 5 to 61: outside the range 0 to 60"):
        mean_bounds([5, 61], 0, 60)
    with pytest.raises(ValueError, match="range 1 to 1"):
        mean_bounds([1], 1, 1)
