"""The adaptive safe rule: near the oracle, within its budget of risk, awake to change."""

import numpy as np
import pytest
from small_board import LATENCY_S
from small_board import SPACE as SMALL

from mllm_sched.arms import Factor
from mllm_sched.experiments.random_tables import FAMILIES
from mllm_sched.schedulers import make_scheduler
from mllm_sched.schedulers.variance_components import VarianceComponents


def scheduler_for(table, **changes):
    arguments = {"limits": {"latency_s": table.limit_s}, "seeds": table.trusted, **changes}
    return make_scheduler("adaptive-safe-gp", table.space, **arguments)


def play(scheduler, table, tasks, noise=0.02, seed=0, outlier=1.0):
    """Decisions, energy over the oracle's, and whether beyond the limit; the first may be off."""
    rng, decisions = np.random.default_rng(seed), []
    for task in range(tasks):
        decisions.append(decision := scheduler.ask())
        arm = decision.arm.index
        first, second = np.exp(noise * rng.standard_normal(2))
        latency_s = table.latency_s[arm] * first * (1.0 if task else outlier)
        energy_j = table.energy_j[arm] * first * second
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
    arms = np.array([decision.arm.index for decision in decisions])
    return decisions, table.energy_j[arms] / table.best_j(), table.latency_s[arms] > table.limit_s


@pytest.mark.parametrize(("family", "arms"), [("queueing", 60), ("board", 60), ("rough", 240)])
def test_over_500_tasks_it_comes_near_the_oracle_and_hardly_ever_beyond_the_limit(family, arms):
    runs = []
    for seed in range(3):
        table = FAMILIES[family](seed, arms)
        _, over, beyond = play(scheduler_for(table), table, 500, seed=seed)
        runs.append((over.mean(), beyond.mean()))
    energy, violations = np.array(runs).T
    assert np.median(energy) < 1.06
    assert violations.mean() <= 0.005


def test_after_a_component_became_slower_it_is_safe_again_within_some_tasks():
    found = []
    for seed in range(4):
        table = FAMILIES["queueing"](seed, 60)
        scheduler = scheduler_for(table)
        usual = play(scheduler, table, 200, seed=seed)[0][-1].arm
        slower = table.with_slower(str(usual.component), 1.35)
        _, over, beyond = play(scheduler, slower, 200, seed=seed + 100)
        found.append((beyond.sum(), over[-50:].mean()))
    violations, late = np.array(found).T
    assert violations.mean() <= 4 and np.median(late) < 1.1


def test_a_single_outlier_of_a_hundred_times_changes_nothing_for_long():
    table = FAMILIES["queueing"](1, 60)
    scheduler = scheduler_for(table)
    usual = play(scheduler, table, 150)[0][-1].arm
    decisions, _, beyond = play(scheduler, table, 50, seed=1, outlier=100.0)
    assert {decision.arm for decision in decisions[-30:]} == {usual}
    assert not beyond[-30:].any()


def test_no_arm_of_a_component_is_tried_on_which_none_is_trusted():
    table = FAMILIES["board"](0, 60)
    assert {str(arm.component) for arm in table.trusted} == {"gpu", "dla"}
    decisions, _, _ = play(scheduler_for(table), table, 200)
    assert "cpu" not in {decision.arm.component for decision in decisions}


def test_the_budget_of_risk_is_kept_and_none_of_it_is_spent_without_one():
    table, risks = FAMILIES["rough"](2, 60), {}
    for rate in (0.0, 0.0005, 0.005):
        decisions, _, _ = play(scheduler_for(table, violation_rate=rate), table, 300)
        trials = [d for d in decisions if d.reason == "worth a trial" and not d.certified]
        risks[rate] = sum(1 - decision.p_feasible for decision in trials)
    tight = 0.0005 * 500
    assert risks[0.0] == 0 < risks[0.0005] <= tight < risks[0.005]


def test_a_component_that_dies_is_left_within_some_failures_however_long_it_was_good():
    table = FAMILIES["queueing"](1, 60)
    scheduler = scheduler_for(table)
    dead = str(play(scheduler, table, 2000)[0][-1].arm.component)
    failures = 0
    for _ in range(200):
        decision = scheduler.ask()
        if decision.arm.component == dead:
            failures += 1
            scheduler.tell(decision.id, failed="out of memory")
        else:
            arm = decision.arm.index
            scheduler.tell(
                decision.id, latency_s=table.latency_s[arm], energy_j=table.energy_j[arm]
            )
    assert failures <= 12 and scheduler.ask().arm.component != dead


def test_a_context_that_no_arm_can_serve_costs_the_others_nothing():
    table = FAMILIES["queueing"](4, 60)
    scheduler = scheduler_for(table, contexts=[Factor("task", ["usual", "hopeless"])])
    left, over = scheduler.budget(), []
    hopeless = 2 * table.limit_s / table.latency_s.min()
    for task in range(500):
        kind = "hopeless" if task < 100 else "usual"
        arm = (decision := scheduler.ask(context={"task": kind})).arm.index
        latency_s = table.latency_s[arm] * (hopeless if kind == "hopeless" else 1.0)
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=table.energy_j[arm])
        over.append(table.energy_j[arm] / table.best_j())
    assert scheduler.budget() > left - 3
    assert np.mean(over[-100:]) < 1.1


def test_a_component_that_failed_is_tried_again_ever_more_seldom_and_taken_back():
    energy_j = np.where(SMALL.features()[:, 0] == 1, 1.0, 3.0)  # the DLA is far cheaper
    seeds = [SMALL.arm(component=name, power_w=60, load=1.0) for name in ("gpu", "dla")]
    scheduler = make_scheduler("adaptive-safe-gp", SMALL, limits={"latency_s": 0.2}, seeds=seeds)
    rng, failed, chosen = np.random.default_rng(0), [], []
    for task in range(1200):
        decision, noise = scheduler.ask(), np.exp(0.02 * rng.standard_normal(2))
        index, on_dla = decision.arm.index, decision.arm.component == "dla"
        chosen.append(on_dla)
        if on_dla and 100 <= task < 700:
            scheduler.tell(decision.id, failed="no answer")
            failed.append(task)
        else:
            latency_s = LATENCY_S[index] * noise[0]
            scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j[index] * noise[1])
    assert len(failed) < 12  # of 600 tasks
    waits = np.diff([task for task in failed if task > 120])
    assert (waits > 100).all() and (np.diff(waits) > 0).all()
    assert np.mean(chosen[:100]) > 0.9 and np.mean(chosen[-100:]) == 1.0


# the belief


def told(tells):
    belief = VarianceComponents(SMALL, 0.0)
    for cell, value in tells:
        belief.tell(cell, value)
    belief.learn()
    return belief


def test_the_scatter_within_cells_tells_the_noise():
    rng, belief = np.random.default_rng(0), VarianceComponents(SMALL, 0.0)
    for _ in range(400):
        belief.tell(int(rng.integers(12)), 0.2 * float(rng.normal()))
    assert belief.noise_variance == pytest.approx(0.04, rel=0.2)


def test_a_product_of_factors_is_guessed_from_few_arms():
    """Latency of all 12 arms from 6, two of them on the component that has the fewest."""
    features = SMALL.features()
    logs = 0.4 * features[:, 0] - 0.9 * features[:, 1] - 0.7 * features[:, 2]
    belief = told([(cell, logs[cell]) for cell in (0, 5, 4, 1, 11, 10)])
    left = [cell for cell in range(12) if belief.counts[cell] == 0]
    assert np.abs(belief.mean[left] - logs[left]).max() < 0.35
    assert (np.abs(belief.mean - logs) < 3 * belief.sd()).all()


def test_what_is_forgotten_is_as_if_it_had_not_been_told():
    belief = told([(cell, 1.0) for cell in range(12)])
    known = belief.sd().copy()
    gone = np.arange(12) >= 6
    belief.forget(gone)
    assert (belief.counts[gone] == 0).all() and (belief.counts[~gone] > 0).all()
    assert (belief.sd()[gone] > 2 * known[gone]).all()
