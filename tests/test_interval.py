import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.harness.sampler import mean_bounds

readings = st.lists(st.floats(0, 60), min_size=1, max_size=60)


@given(readings, st.floats(0.1, 100), st.floats(-50, 50))
def test_units_and_offsets_change_nothing(values, scale, shift):
    lower, upper = mean_bounds(values, 0, 60)
    moved = np.clip(np.multiply(values, scale) + shift, shift, 60 * scale + shift)
    scaled = mean_bounds(moved, shift, 60 * scale + shift)
    assert scaled == pytest.approx((lower * scale + shift, upper * scale + shift), abs=1e-6)


@given(readings)
def test_bounds_hold_the_mean_and_stay_within_the_range(values):
    lower, upper = mean_bounds(values, 0, 60)
    assert 0 <= lower <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= upper <= 60


def test_more_readings_narrow_the_bounds_of_a_steady_load_in_proportion():
    widths = [np.diff(mean_bounds([12.0] * n, 0, 60))[0] for n in (100, 1000, 10_000)]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(10, rel=0.2)


def test_a_steady_load_is_not_called_certain():
    """Ten equal readings cannot exclude that half of the time passed at another power."""
    lower, upper = mean_bounds([12.0] * 10, 0, 60)
    assert upper - lower > 10


def test_a_rare_spike_that_was_never_hit_lies_within_the_bounds():
    """2 ms of 60 W in every second: 10 s at 100 Hz miss all ten of them once in eight times."""
    truth = 10 + 50 * 0.002
    _, upper = mean_bounds([10.0] * 1000, 0, 60)
    assert upper > truth


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_independent_readings_of_any_law_are_covered(confidence):
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        values = np.where(rng.random(200) < 0.02, 55.0, 9.0)
        lower, upper = mean_bounds(values, 0, 60, confidence=confidence)
        missed += not lower <= 9 + 46 * 0.02 <= upper
    assert missed / 300 <= 1 - confidence


def test_without_readings_anything_is_possible():
    assert mean_bounds([], 0, 60) == (0, 60)


def test_readings_outside_the_range_and_empty_ranges_are_refused():
    with pytest.raises(ValueError, match="from 5 to 61: outside the range 0 to 60"):
        mean_bounds([5, 61], 0, 60)
    with pytest.raises(ValueError, match="range 1 to 1"):
        mean_bounds([1], 1, 1)
