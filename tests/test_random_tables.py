import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mllm_sched.experiments import ablations
from mllm_sched.experiments.ablations import Trial, each, play_all, summary
from mllm_sched.experiments.random_tables import FAMILIES
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import scheduler_names

FIXED = Rule("Fixed", "fixed")


def test_the_numbers_of_a_trial_are_those_of_the_arms_that_were_played():
    table = FAMILIES["queueing"](3, 48)
    first = table.trusted[0].index
    energy, violations = Trial(FIXED, "queueing", 48, tasks=20).play(3)
    assert energy == pytest.approx(table.energy_j[first] / table.best_j())
    assert violations == 0.0


def test_drift_comes_at_half_time_and_the_oracle_knows():
    seeds = range(30)
    plain, drift = (
        [Trial(FIXED, "queueing", 48, tasks=20, drift=drift).play(seed) for seed in seeds]
        for drift in (False, True)
    )
    changed = [a != b for a, b in zip(plain, drift, strict=True)]
    assert any(changed)
    assert max(violations for _, violations in drift) <= 0.5


def test_raw_outcomes_leave_the_order_of_arms_and_the_limit_as_they_are():
    """A rule that knows everything after one round ends on the same arm, told either way."""
    rule = Rule("profile", "profile-then-commit", {"rounds": 1})
    told = [Trial(rule, "rough", 48, noise=0.0, raw=raw).play(0) for raw in (False, True)]
    assert told[0] == told[1]


def test_heavy_tails_and_fewer_trusted_arms_change_a_run():
    rule = ablations.SAFE
    base = Trial(rule, "roofline", 48, noise=0.15, tasks=60)
    others = [
        Trial(rule, "roofline", 48, noise=0.15, tasks=60, heavy=True),
        Trial(rule, "roofline", 48, noise=0.15, tasks=60, seeds=1),
    ]
    assert all(other.play(1) != base.play(1) for other in others)


def test_a_table_of_runs_is_summarised():
    trials = each(Trial(FIXED, "rough", 48, tasks=5), {"one": {"seeds": 1}}, [{"drift": False}])
    alone = play_all(trials, 3, n_jobs=1)
    rows = summary(alone, ["label", "drift"])
    assert rows["label"].tolist() == ["as it is", "one"] and (rows["n"] == 3).all()
    assert rows["energy"][0] == pytest.approx(alone["energy"][:3].mean())
    assert (rows["energy_low"] <= rows["energy"]).all()


def test_every_rule_that_can_be_compared_is_and_no_label_comes_twice():
    named = {rule.name for rule in ablations.FIELD}
    assert named == set(scheduler_names()) - {"oracle", "random"}
    labels = [rule.label for rule in ablations.FIELD]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("rule", "variants"),
    [(ablations.ADAPTIVE, ablations.PARTS), (ablations.SAFE, ablations.CHOICES)],
)
def test_every_variant_can_be_played_and_drawn(rule, variants):
    trials = ablations.ablation_trials(rule, variants, [("board", 60)])
    rows = summary(
        play_all([Trial(**{**vars(trial), "tasks": 4}) for trial in trials], 2, n_jobs=1),
        ["label", "drift"],
    )
    assert set(rows["label"]) == {"as it is", *variants}
    figure = ablations.ablation(rows, title="Some rule", evidence="simulated")
    assert "simulated" in figure.get_suptitle()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["as it is", *variants]
    plt.close(figure)


def test_the_frontier_joins_what_nothing_beats():
    rows = pd.DataFrame(
        {
            "drift": np.repeat([False, True], 3),
            "scheduler": ["a", "b", "c"] * 2,
            "energy": [1.1, 1.3, 1.2] * 2,
            "violations": [0.01, 0.0, 0.02] * 2,
        }
    )
    figure = ablations.frontier_of_rules(rows, evidence="simulated")
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert line.get_ydata().tolist() == pytest.approx([0.3, 0.1])
    assert "simulated" in figure.axes[0].get_title()
    plt.close(figure)
