import pandas as pd
import pytest

from mllm_sched.experiments.random_tables import FAMILIES, FIELD, Trial, play_all, summary
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import scheduler_names

FIXED = Rule("Fixed", "fixed")


def test_the_numbers_of_a_trial_are_those_of_the_arms_that_were_played():
    table = FAMILIES["queueing"](3, 48)
    first = table.trusted[0].index
    energy, violations = Trial(FIXED, "queueing", 48, tasks=20).play(3)[0]
    assert energy == pytest.approx(table.energy_j[first] / table.best_j())
    assert violations == 0.0


def test_drift_comes_at_half_time_and_the_oracle_knows():
    outcomes = [Trial(FIXED, "queueing", 48, tasks=20).play(seed) for seed in range(30)]
    assert any(still != drifted for still, drifted in outcomes)
    assert max(violations for _, (_, violations) in outcomes) <= 0.5


def test_raw_outcomes_leave_the_order_of_arms_and_the_limit_as_they_are():
    """A rule that knows everything after one round ends on the same arm, told either way."""
    rule = Rule("profile", "profile-then-commit", {"rounds": 1})
    told = [Trial(rule, "rough", 48, noise=0.0, raw=raw).play(0) for raw in (False, True)]
    assert told[0] == told[1]


def test_a_table_of_runs_is_summarised():
    trials = [Trial(FIXED, "rough", 48, tasks=5, label=label) for label in ("a", "b")]
    played = play_all(trials, 3, n_jobs=1)
    rows = summary(played, ["label", "drift"])
    assert list(zip(rows["label"], rows["drift"], strict=True)) == [
        *(("a", False), ("b", False), ("a", True), ("b", True))
    ]
    assert (rows["n"] == 3).all() and (rows["energy_low"] <= rows["energy"]).all()
    assert rows["energy"][0] == pytest.approx(played["energy"][:3].mean())


def test_every_rule_that_can_be_compared_is_and_no_label_comes_twice():
    assert {rule.name for rule in FIELD} == set(scheduler_names()) - {"oracle", "random"}
    assert pd.Series([rule.label for rule in FIELD]).is_unique
