import numpy as np
import pandas as pd
import pytest

from mllm_sched.experiments.metering import LOADS, SCHEDULES, summary, windows
from mllm_sched.harness.fake_jetson.board import Pulses


@pytest.fixture(scope="module")
def table():
    return windows(LOADS, [0.1, 10.0], [50, 200], repeats=20, seed=3)


def test_every_kind_is_measured_as_often_and_the_seed_decides(table):
    counts = table.groupby(["load", "window_s", "rate_hz"]).size()
    assert len(counts) == len(LOADS) * 4 and set(counts) == {20}
    again = windows(LOADS, [0.1, 10.0], [50, 200], repeats=20, seed=3)
    pd.testing.assert_frame_equal(table, again)
    assert not table.equals(windows(LOADS, [0.1, 10.0], [50, 200], repeats=20, seed=4))


def test_more_readings_and_longer_windows_are_better(table):
    found = summary(table, ["window_s", "rate_hz"]).set_index(["window_s", "rate_hz"])["error"]
    assert found[10.0, 200] < found[10.0, 50] < found[0.1, 50]


def test_the_summary_holds_the_worst_and_the_typical_error():
    table = pd.DataFrame(
        {"load": "a", "error": [0.0, -0.3, 0.1], "half_width": [0.1, 0.2, 0.3], "covered": True}
    )
    (row,) = summary(table, ["load"]).to_dict("records")
    assert row["worst"] == 0.3 and row["error"] == pytest.approx(np.sqrt(0.1 / 3))
    assert row["half_width"] == pytest.approx(0.2) and row["covered"] == 1


def test_equal_steps_beat_against_a_load_that_repeats_itself_and_random_ones_do_not():
    """Spikes every 0.1 s, read every 0.01 s: each window hits all of them at the same place."""
    load = {"spikes": Pulses(10.0, 50.0, 0.1, 0.002)}
    drawn = windows(load, [10.0], [100], repeats=60, schedules=SCHEDULES)
    found = summary(drawn, ["schedule"]).set_index("schedule")
    assert found.loc["equal steps", "error"] > 0.1 > 5 * found.loc["random", "error"]
    assert found.loc["random", "covered"] >= 0.93 > found.loc["equal steps", "covered"]
