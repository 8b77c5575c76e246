"""What every scheduler believes of every arm, as a table."""

import numpy as np
import pytest
from test_schedulers import FAST, LIMITS, make, play, truth

from mllm_sched.arms import Factor
from mllm_sched.schedulers import scheduler_names

COLUMNS = [
    *("arm", "energy_j_low", "energy_j_high", "latency_s_low", "latency_s_high"),
    *("certified", "plays"),
]
NOTHING = {"random", "fixed"}  # have no belief
ENERGY_ALONE = {"ucb", "thompson", "epsilon-greedy", "sliding-window-ucb", "discounted-ucb", "exp3"}
CERTIFY_NONE = NOTHING | ENERGY_ALONE | {"constrained-ucb", "profile-then-commit"}
every_scheduler = pytest.mark.parametrize("name", scheduler_names())


@every_scheduler
def test_bounds_are_there_for_what_the_rule_has_a_belief_of(name):
    scheduler = make(name)
    assert not scheduler.belief_table()["plays"].any()
    arms = play(scheduler, truth(), 150)
    scheduler.ask()  # still running
    table = scheduler.belief_table()
    assert list(table.columns) == COLUMNS
    assert table["plays"].tolist() == np.bincount(arms, minlength=60).tolist()
    played = table[table["plays"] > 0]
    for quantity, without in (("energy_j", NOTHING), ("latency_s", NOTHING | ENERGY_ALONE)):
        bounds = played[[f"{quantity}_low", f"{quantity}_high"]]
        assert (
            bounds.isna().all(axis=None) if name in without else np.isfinite(bounds).all(axis=None)
        )
        assert not (bounds.iloc[:, 0] > bounds.iloc[:, 1]).any()
    assert table["certified"].any() == (name not in CERTIFY_NONE)


@every_scheduler
def test_looking_changes_no_later_decision(name):
    looked, left = make(name), make(name)
    rng, means = np.random.default_rng(0), truth()
    for _ in range(75):
        before = looked.belief_table()
        ours, theirs = looked.ask(), left.ask()
        assert (ours.arm, ours.reason, ours.bounds) == (theirs.arm, theirs.reason, theirs.bounds)
        values = {q: means[q][ours.arm.index] * np.exp(0.03 * rng.standard_normal()) for q in means}
        looked.tell(ours.id, **values)
        left.tell(theirs.id, **values)
        assert not looked.belief_table().equals(before)


@pytest.mark.parametrize(
    "name", ["safe-gp-ucb", "edgebol", "safeopt", "config", "adaptive-safe-gp"]
)
def test_true_means_are_mostly_within_the_bounds_on_a_board_without_noise(name):
    scheduler, means = make(name), truth()
    play(scheduler, means, 200, noise=0.0)
    table = scheduler.belief_table()
    for quantity, true in means.items():
        low, high = table[f"{quantity}_low"] * 0.999, table[f"{quantity}_high"] * 1.001
        assert ((low <= true) & (true <= high)).mean() > 0.85, quantity


def test_the_oracle_knows_the_truth_and_certifies_what_meets_the_limit():
    means, table = truth(), make("oracle").belief_table()
    assert table["latency_s_low"].tolist() == pytest.approx(means["latency_s"].tolist())
    assert table["certified"].tolist() == (means["latency_s"] <= LIMITS["latency_s"]).tolist()


def test_each_context_has_a_table_of_its_own():
    contexts = [Factor("encoder", ["small", "large"])]
    scheduler = make("safe-gp-ucb", contexts=contexts)
    decision = scheduler.ask({"encoder": "large"})
    scheduler.tell(decision.id, energy_j=3.0, latency_s=0.1)
    assert decision.arm == FAST
    assert scheduler.belief_table({"encoder": "large"})["plays"].sum() == 1
    assert scheduler.belief_table({"encoder": "small"})["plays"].sum() == 0
    with pytest.raises(ValueError, match="expected a level for encoder"):
        scheduler.belief_table()
