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


def play(scheduler, table, tasks, noise=0.02, seed=0, change=lambda task, table: table):
    """Arms played, their energy over the oracle's, and whether they were beyond the limit."""
    rng, arms, over, beyond = np.random.default_rng(seed), [], [], []
    for task in range(tasks):
        table = change(task, table)
        decision = scheduler.ask()
        arm = decision.arm.index
        first, second = np.exp(noise * rng.standard_normal(2))
        latency_s = table.latency_s[arm] * first
        energy_j = table.energy_j[arm] * first * second
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
        arms.append(arm)
        over.append(table.energy_j[arm] / table.best_j())
        beyond.append(table.latency_s[arm] > table.limit_s)
    return np.array(arms), np.array(over), np.array(beyond)


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
        before = scheduler_for(table)
        arms, _, _ = play(before, table, 200, seed=seed)
        slower = table.with_slower(str(table.space[arms[-1]].component), 1.35)
        _, over, beyond = play(before, slower, 200, seed=seed + 100)
        found.append((beyond.sum(), over[-50:].mean()))
    violations, late = np.array(found).T
    assert violations.mean() <= 4 and np.median(late) < 1.1


def test_a_single_outlier_of_a_hundred_times_changes_nothing_for_long():
    table = FAMILIES["queueing"](1, 60)
    scheduler = scheduler_for(table)
    usual = play(scheduler, table, 150)[0][-1]
    decision = scheduler.ask()
    outlier_s = 100 * table.latency_s[decision.arm.index]
    scheduler.tell(decision.id, latency_s=outlier_s, energy_j=table.energy_j[usual])
    arms, _, beyond = play(scheduler, table, 50, seed=1)
    assert (arms[-30:] == usual).all() and not beyond[-30:].any()


def test_no_arm_of_a_component_is_tried_on_which_none_is_trusted():
    table = FAMILIES["board"](0, 60)
    assert {str(arm.component) for arm in table.trusted} == {"gpu", "dla"}
    arms, _, _ = play(scheduler_for(table), table, 200)
    assert "cpu" not in {table.space[arm].component for arm in arms}


def trial_risk(scheduler, table, tasks=300):
    """Violations expected of all trials of arms that were not certified."""
    total, rng = 0.0, np.random.default_rng(0)
    for _ in range(tasks):
        arm = (decision := scheduler.ask()).arm.index
        first, second = np.exp(0.02 * rng.standard_normal(2))
        energy_j, latency_s = table.energy_j[arm] * second, table.latency_s[arm] * first
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
        if decision.reason == "worth a trial" and not decision.certified:
            total += 1 - decision.p_feasible
    return total


def test_the_budget_of_risk_is_kept_and_none_of_it_is_spent_without_one():
    table = FAMILIES["rough"](2, 60)
    tight = 0.0005 * 500
    assert trial_risk(scheduler_for(table, violation_rate=0.0005), table) <= tight
    assert trial_risk(scheduler_for(table), table) > tight  # else the bound would prove nothing
    careful = scheduler_for(table, violation_rate=0.0)
    decisions = []
    for _ in range(100):
        decisions.append(decision := careful.ask())
        arm = decision.arm.index
        careful.tell(decision.id, latency_s=table.latency_s[arm], energy_j=table.energy_j[arm])
    assert all(each.certified or each.reason.startswith("trusted") for each in decisions)


def test_contexts_have_beliefs_of_their_own_and_learn_from_each_other():
    table = FAMILIES["queueing"](4, 60)
    contexts = [Factor("background_load", [0.0, 0.3])]
    scheduler = scheduler_for(table, contexts=contexts)
    beyond = []
    for task in range(400):
        load = (0.0, 0.3)[task % 2]
        arm = (decision := scheduler.ask(context={"background_load": load})).arm.index
        latency_s = table.latency_s[arm] / (1 - load)
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=table.energy_j[arm])
        beyond.append(latency_s > table.limit_s)
    assert np.mean(beyond[100:]) < 0.01


# the belief


def told(tells, learn=True):
    belief = VarianceComponents(SMALL, 0.0)
    belief.tell(0, 0.1)
    for cell, value in tells:
        belief.tell(cell, value)
    if learn:
        belief.learn()
    return belief


def test_the_recursion_is_the_batch_posterior_after_many_tells():
    belief, rng = told([(cell, 0.1 * cell) for cell in range(12)]), np.random.default_rng(0)
    for _ in range(5000):
        belief.tell(int(rng.integers(12)), float(rng.normal()))
    prior, noise = belief.posterior.prior_covariance, belief.posterior.noise_variance
    within = prior + np.diag(noise / belief.counts)
    gain = np.linalg.solve(within, prior).T
    mean = belief._prior_mean + gain @ (belief._means - belief._prior_mean)
    np.testing.assert_allclose(belief.mean, mean, atol=1e-8)
    np.testing.assert_allclose(belief.posterior.covariance, prior - gain @ prior, atol=1e-8)
    assert np.linalg.eigvalsh(belief.posterior.covariance).min() > -1e-10


def test_the_scatter_within_cells_tells_the_noise():
    rng, belief = np.random.default_rng(0), VarianceComponents(SMALL, 0.0)
    for _ in range(400):
        belief.tell(int(rng.integers(12)), 0.2 * float(rng.normal()))
    assert belief.noise_variance == pytest.approx(0.04, rel=0.2)


def test_a_product_of_factors_is_guessed_from_few_arms():
    """Latency of all 12 arms from 5, two of them on the component that has the fewest."""
    features = SMALL.features()
    logs = 0.4 * features[:, 0] - 0.9 * features[:, 1] - 0.7 * features[:, 2]
    belief = told([(cell, logs[cell]) for cell in (0, 5, 4, 1, 11, 10)], learn=False)
    belief.learn()
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


def test_a_component_that_dies_is_left_within_some_failures_however_long_it_was_good():
    table = FAMILIES["queueing"](1, 60)
    scheduler = scheduler_for(table)
    dead = str(table.space[play(scheduler, table, 2000)[0][-1]].component)
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
        slower = hopeless if kind == "hopeless" else 1.0
        latency_s = slower * table.latency_s[arm]
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=table.energy_j[arm])
        over.append(table.energy_j[arm] / table.best_j())
    assert scheduler.budget() > left - 3
    assert np.mean(over[-100:]) < 1.1


def test_a_component_that_failed_is_tried_again_ever_more_seldom_and_taken_back():
    latency_s = LATENCY_S
    energy_j = np.where(SMALL.features()[:, 0] == 1, 1.0, 3.0)  # the DLA is far cheaper
    seeds = [SMALL.arm(component=name, power_w=60, load=1.0) for name in ("gpu", "dla")]
    scheduler = make_scheduler("adaptive-safe-gp", SMALL, limits={"latency_s": 0.2}, seeds=seeds)
    rng, failed, chosen = np.random.default_rng(0), [], []
    for task in range(1200):
        decision = scheduler.ask()
        index, on_dla = decision.arm.index, decision.arm.component == "dla"
        chosen.append(on_dla)
        if on_dla and 100 <= task < 700:
            scheduler.tell(decision.id, failed="no answer")
            failed.append(task)
            continue
        noise = np.exp(0.02 * rng.standard_normal(2))
        scheduler.tell(
            decision.id, latency_s=latency_s[index] * noise[0], energy_j=energy_j[index] * noise[1]
        )
    assert len(failed) < 12  # of 600 tasks
    waits = np.diff([task for task in failed if task > 120])
    assert (waits > 100).all() and (np.diff(waits) > 0).all()
    assert np.mean(chosen[:100]) > 0.9 and np.mean(chosen[-100:]) == 1.0
