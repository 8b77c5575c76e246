import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.experiments import savings
from mllm_sched.experiments.plots import OURS
from mllm_sched.experiments.provenance import as_csv
from mllm_sched.experiments.savings import (
    PlayedRuns,
    SavingsScenario,
    annual,
    fleet,
    headline,
    saved,
)
from mllm_sched.experiments.strategy_costs import Setting, modelled
from mllm_sched.pipeline.work import read_work

ENCODERS = ("whisper-small", "clip-vit-b32")
MIX = {"whisper-small": 1.0, "clip-vit-b32": 1.0}
STEPS = 80  # more than the 60 arms
volumes = st.floats(0.01, 1e4)


@pytest.fixture(scope="module")
def runs():
    return savings.play(ENCODERS, (0.05, 0.2), steps=STEPS, seeds=3, n_jobs=1)


@pytest.fixture(scope="module")
def played(runs):
    return PlayedRuns(runs)


def test_the_played_table_says_where_no_arm_meets_the_limit(runs, played):
    nobody = runs[runs["scheduler"] == savings.NOBODY]
    assert list(nobody["encoder"]) == ["whisper-small"] and list(nobody["limit_s"]) == [0.05]
    with pytest.raises(ValueError, match=r"whisper-small: no arm encodes within 0.05 s.*longer"):
        annual(SavingsScenario(mix=MIX, limit_s=0.05), played)
    assert len(annual(SavingsScenario(mix={"clip-vit-b32": 1}, limit_s=0.05), played)) == 11


def test_a_table_of_runs_says_the_same_after_it_was_written_and_read(runs, played, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(as_csv(runs))
    again = PlayedRuns(savings.read_runs(path))
    scenario = SavingsScenario(mix=MIX)
    pd.testing.assert_frame_equal(annual(scenario, again), annual(scenario, played), rtol=1e-4)
    assert again.limits_s == played.limits_s and again.encoders == played.encoders


@settings(deadline=None, max_examples=30)
@given(volume=volumes, devices=st.integers(1, 10_000))
def test_a_fleet_takes_as_much_as_its_devices_together(played, volume, devices):
    one = fleet(SavingsScenario(tasks_per_day=volume, devices=1, mix=MIX), played)
    all_ = fleet(SavingsScenario(tasks_per_day=volume, devices=devices, mix=MIX), played)
    np.testing.assert_allclose(all_.energy_kwh, devices * one.energy_kwh)
    np.testing.assert_allclose(all_.idle_kwh, devices * one.idle_kwh)
    np.testing.assert_allclose(all_.beyond, one.beyond)


def test_a_device_with_few_tasks_pays_for_learning_alone(runs, played):
    """30 tasks in all: half a run's; what comes later does not matter."""
    short = SavingsScenario(tasks_per_day=1, days=30, devices=1, mix={"clip-vit-b32": 1})
    late = [name for name in runs if name.startswith("late_energy")]
    other = runs.assign(**dict.fromkeys(late, 1e6))
    energy = fleet(short, played).energy_kwh
    np.testing.assert_array_equal(energy, fleet(short, PlayedRuns(other)).energy_kwh)
    ucb, oracle = (energy[played.schedulers.index(name)].mean() for name in ("UCB", "Oracle"))
    assert ucb > 2 * oracle


def test_tasks_beyond_a_run_cost_what_its_second_half_did(runs, played):
    rows = runs[(runs["encoder"] == "clip-vit-b32") & (runs["limit_s"] == 0.2)]
    rows = rows[rows["scheduler"] == "UCB"].sort_values("seed")
    scenario = SavingsScenario(tasks_per_day=100, days=10, devices=1, mix={"clip-vit-b32": 1})
    expected = rows[f"energy_j@{STEPS}"] + (1000 - STEPS) * rows["late_energy_j"]
    place = played.schedulers.index("UCB")
    np.testing.assert_allclose(3.6e6 * fleet(scenario, played).energy_kwh[place], expected)


def test_savings_in_percent_do_not_move_with_the_error_of_the_model(played, monkeypatch):
    before = saved(SavingsScenario(mix=MIX), played, OURS)
    monkeypatch.setattr(savings, "model_factor", lambda: 7.0)
    after = saved(SavingsScenario(mix=MIX), played, OURS)
    share = ["share", "share_low", "share_high"]
    pd.testing.assert_frame_equal(before[share], after[share])
    assert not np.allclose(before["energy_kwh_wide_high"], after["energy_kwh_wide_high"])
    monkeypatch.undo()
    assert 1.1 < savings.model_factor() < 1.8


def test_the_headline_says_less_or_more_and_that_it_is_simulated(played):
    scenario = SavingsScenario(mix=MIX, devices=3)
    bill = annual(scenario, played).set_index("scheduler")["energy_kwh"]
    row = saved(scenario, played, OURS).set_index("scheduler").loc["Random"]
    assert math.isclose(row["energy_kwh"], bill["Random"] - bill[OURS], abs_tol=1e-9)
    told = headline(scenario, played, OURS, "Random")
    assert told.startswith("Safe GP-UCB takes ") and "less a year than Random" in told
    assert "these 3 devices (simulated)" in told and "euro" in told and "kg CO2e" in told
    assert " more a year than Safe GP-UCB" in headline(scenario, played, "Random", OURS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks_per_day": 0}, "tasks_per_day=0: give a number above 0"),
        ({"tasks_per_day": math.nan}, "tasks_per_day=nan"),
        ({"devices": 0}, "devices=0: give a whole number, 1 or more"),
        ({"devices": 1.5}, "devices=1.5"),
        ({"price_per_kwh": -0.1}, "price_per_kwh=-0.1: give a number, 0 or more"),
        ({"mix": {"resnet-5": 1}}, "'resnet-5': expected some of .*resnet-50"),
        ({"mix": {"whisper-small": -1}}, "whisper-small=-1"),
        ({"mix": {"whisper-small": 0}}, "mix: shares sum to 0"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        SavingsScenario(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit_s": 0.3}, "limit_s=0.3: played were 0.05, 0.2"),
        ({"mix": {"resnet-50": 1}}, "encoder=resnet-50: played were whisper-small, clip-vit-b32"),
        ({"tasks_per_day": 1e9}, r"tasks_per_day=1e\+09: .* busy .* h a day"),
    ],
)
def test_what_was_not_played_or_cannot_be_done_is_refused(played, changes, said):
    with pytest.raises(ValueError, match=said):
        annual(SavingsScenario(**{"mix": MIX, **changes}), played)
    with pytest.raises(ValueError, match="'Nobody': played were Oracle"):
        saved(SavingsScenario(mix=MIX), played, "Nobody")


def test_the_strategies_equal_a_computation_by_hand():
    power, setting = savings.Power(), Setting(items=[savings.ENCODED[ENCODERS[0]]])
    model, work = calibrated_model(), read_work()["whisper-small"]
    encode_j = model.energy_j(work, "gpu", 60)
    edge, remote, hybrid = (
        savings.request_j(name, "whisper-small") for name in ("all-edge", "all-remote", "hybrid")
    )
    assert math.isclose(edge["edge"], encode_j + 40 * modelled("all-edge", setting).llm_s)
    assert edge["server"] == edge["network"] == 0
    cost = modelled("all-remote", setting)
    assert math.isclose(remote["server"], 300 * 0.7 * 1.2 * (cost.encode_s + cost.llm_s))
    assert remote["edge"] == 0
    assert math.isclose(remote["network"], 8e-6 * (960_000 + 4 * 64))
    assert math.isclose(hybrid["edge"], encode_j)
    assert math.isclose(hybrid["server"], 300 * 0.7 * 1.2 * modelled("hybrid", setting).llm_s)
    assert math.isclose(hybrid["network"], power.network_j_per_bit * 8 * (1500 * 768 * 2 + 256))


def test_a_years_strategies_are_their_requests_and_lie_within_their_range():
    scenario = SavingsScenario(tasks_per_day=10, devices=2, days=5, mix={"clip-vit-b32": 1})
    table = savings.strategy_annual(scenario)
    for row in table.itertuples():
        strategy = savings.STRATEGIES[row.strategy]
        joules = sum(savings.request_j(strategy, "clip-vit-b32").values())
        assert math.isclose(row.energy_kwh, 100 * joules / 3.6e6)
        assert math.isclose(row.energy_kwh, row.edge_kwh + row.server_kwh + row.network_kwh)
        assert row.low_kwh < row.energy_kwh < row.high_kwh
        assert math.isclose(row.money, 0.3 * row.energy_kwh)
