import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.experiments import metrics

NAN = math.nan
MADE = {
    "arm": [3, 3, 5, 3],
    "energy_j": [2.0, 4.0, 6.0, 8.0],
    "latency_s": [0.75, 1.25, 1.5, 0.5],
    "true_energy_j": [4.0, 4.0, 1.0, 3.0],
    "true_latency_s": [0.75, 1.0, 1.5, 0.75],
    "oracle_energy_j": 2.0,
    "failed": "",
}


def made(scheduler="A", seed=0, **columns):
    """A run of four tasks, worked out by hand."""
    key = {"scheduler": pd.Categorical([scheduler] * 4), "seed": seed, "step": range(4)}
    return pd.DataFrame({**key, **MADE, **columns})


def many(*tables):
    return pd.concat(tables, ignore_index=True).astype({"scheduler": "category"})


def score(start=0, **columns):
    return metrics.per_run(made(**columns), {"latency_s": 1.0}, start=start).iloc[0]


def test_means_ratios_and_shares_of_a_run():
    run = score()
    assert run["energy_j"] == 5 and run["latency_s"] == 1
    assert run["energy_over_oracle"] == 12 / 8  # sums of true means, not a mean of ratios
    # True means: 1.5 s is beyond the limit and 1 s is not. Observed: 1.25 s and 1.5 s are.
    assert run["violations"] == 1 / 4 and run["observed_violations"] == 2 / 4


def test_tasks_before_the_start_do_not_count():
    late = score(start=2)
    assert late["energy_j"] == 7 and late["energy_over_oracle"] == 4 / 4
    assert late["violations"] == late["observed_violations"] == 1 / 2
    assert late["regret_j"] == 1
    assert late["switches"] == 1 / 2  # to the fourth task; the second is not there to compare


def test_energy_saved_beyond_the_limit_earns_no_credit():
    assert metrics.regret(made()).tolist() == [2, 2, 0, 1]
    assert score()["regret_j"] == 5


@pytest.mark.parametrize(("arms", "share"), [([3, 3, 5, 3], 0.5), ([3] * 4, 0), ([1, 2] * 2, 0.75)])
def test_a_switch_is_another_arm_than_before(arms, share):
    assert score(arm=arms)["switches"] == share


def test_a_run_does_not_switch_from_the_run_before():
    table = many(made(arm=1), made(seed=1, arm=2), made("B", arm=3))
    table = table.sort_values("step", kind="stable")  # runs take turns
    runs = metrics.per_run(table, {"latency_s": 1.0})
    assert runs["switches"].tolist() == [0, 0, 0]
    assert list(zip(runs["scheduler"], runs["seed"], strict=True)) == [("A", 0), ("A", 1), ("B", 0)]


def test_a_failed_task_is_judged_by_its_latency_and_without_one_violates_the_limit():
    failed = ["hangs", "the meter broke", "the meter broke", ""]
    run = score(failed=failed, latency_s=[NAN, 0.75, 1.25, 0.5])
    assert run["observed_violations"] == 2 / 4 and run["failures"] == 3 / 4


def test_without_a_truth_there_is_no_share_of_it():
    run = score(true_energy_j=NAN, true_latency_s=NAN, oracle_energy_j=NAN)
    assert run[["violations", "energy_over_oracle", "regret_j"]].isna().all()
    assert run["observed_violations"] == 2 / 4


def runs_of(**energies):
    """Runs with seeds 0, 1, ... of these energies, the last one first."""
    rows = [(name, seed, e) for name, es in energies.items() for seed, e in enumerate(es)]
    runs = pd.DataFrame(rows[::-1], columns=["scheduler", "seed", "energy_j"])
    return runs.astype({"scheduler": "category"})


def test_savings_are_paired_by_seed():
    runs = runs_of(ours=[1.0, 9.0], other=[2.0, 10.0], same=[1.0, 9.0])
    saved = metrics.savings(runs, "ours").set_index("scheduler")
    # 1 - 1/2 and 1 - 9/10; of the means it would be 1 - 10/12.
    assert saved.loc["other"].tolist() == pytest.approx([0.3, 0.1, 0.5, 2])
    assert saved.loc["same"].tolist() == [0, 0, 0, 2]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
@settings(max_examples=30)
def test_an_interval_lies_around_its_mean_and_within_the_values(values):
    mean, low, high = metrics.mean_interval(values)
    slack = 1e-9 * max(map(abs, values))
    assert mean == pytest.approx(np.mean(values))
    assert min(values) - slack <= low <= mean + slack
    assert mean - slack <= high <= max(values) + slack


def test_curves_average_within_blocks_and_over_seeds():
    table = many(made(), made(seed=1), made("B"))
    values = pd.Series([1, 3, 5, 7, 3, 5, 7, 9, 0, 2, 4, 6], dtype=float)
    result = metrics.curves(table, values, points=2).set_index(["scheduler", "step"])
    assert result["value"].to_dict() == {("A", 2): 3, ("A", 4): 7, ("B", 2): 1, ("B", 4): 5}
    # Two seeds give 2 and 4; one seed has no spread.
    assert result.loc[("A", 2), ["low", "high"]].tolist() == [2, 4]
    assert result.loc[("B", 2), ["low", "high"]].tolist() == [1, 1]


def test_what_never_ran_does_not_flatter_its_scheduler():
    """Arms whose truth is unknown, because they always failed, count neither here nor there."""
    run = score(true_energy_j=[4.0, NAN, 4.0, NAN])
    assert run["energy_over_oracle"] == 8 / 4


def test_what_is_said_of_the_worst_case_reaches_to_the_worst_bound_of_any():
    rows = pd.DataFrame({"value": [0.45, 0.40], "low": [0.45, 0.0], "high": [0.45, 1.2], "n": 20})
    assert metrics.highest(rows) == (0.45, 0.45, 1.2, 20)
    assert metrics.lowest(rows) == (0.40, 0.0, 1.2, 20)
