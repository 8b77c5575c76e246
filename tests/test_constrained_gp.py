"""The field's schedulers, each held to what its paper says of it."""

import copy
import math

import numpy as np
import pytest
from small_board import ENERGY_J, FAST, LATENCY_S, SPACE, make, play, tell

from mllm_sched.schedulers import Hyperparameters

CELLS = np.arange(len(SPACE))
SMOOTH = {"latency_s": Hyperparameters(0.3, 0.0004, (0.95, 2.0, 2.0))}  # one arm tells of others


@pytest.mark.parametrize("tasks", [1, 5, 20])
def test_an_expander_would_certify_another_arm_if_it_were_as_good_as_it_may_be(tasks):
    scheduler = make("safeopt")
    play(scheduler, tasks)
    certified, trusted = scheduler.safe_set()
    candidates = CELLS[certified | trusted]
    found = set(scheduler._expanders(candidates, CELLS).tolist())
    for cell in candidates:
        belief = copy.deepcopy(scheduler.beliefs["latency_s"])
        belief.tell(int(cell), float(belief.mean[cell] - scheduler.width * belief.sd()[cell]))
        would = belief.mean + scheduler.width * belief.sd() <= math.log(0.2)
        assert (int(cell) in found) == bool((would & ~certified).any())


@pytest.mark.parametrize("name", ["safeopt", "stageopt", "goose", "safe-thompson", "edgebol"])
def test_safe_rules_never_leave_the_safe_set(name):
    scheduler = make(name)
    for _ in range(150):
        certified, trusted = scheduler.safe_set()
        arm = int(play(scheduler, 1)[0])
        assert (certified | trusted)[arm]


def test_stageopt_expands_first_and_then_takes_the_least_energy_bound():
    scheduler = make("stageopt", expansion=10, hyperparameters=SMOOTH)
    reasons = []
    for _ in range(20):
        decision = scheduler.ask()
        reasons.append(decision.reason)
        tell(scheduler, decision)
    assert reasons[0] == "trusted seed"
    assert "first stage: least known expander" in reasons[1:10]
    assert set(reasons[10:]) == {"least energy bound in the safe set"}


def test_goose_goes_for_what_an_optimist_would_take_and_for_what_tells_most_of_it():
    scheduler = make("goose", hyperparameters=SMOOTH)
    for _ in range(100):
        hopeful = CELLS[scheduler.possible()]
        goal = int(hopeful[scheduler.lower("energy_j")[hopeful].argmin()])
        certified, trusted = scheduler.safe_set()
        decision = scheduler.ask()
        index = decision.arm.index
        if (certified | trusted)[goal]:
            assert index == goal
        elif decision.reason == "tells most of what an optimist would take":
            belief = scheduler.beliefs["latency_s"]
            told = belief.covariance[goal] ** 2 / (belief.sd() ** 2 + belief.noise_variance)
            assert told[index] == pytest.approx(told[certified | trusted].max())
        tell(scheduler, decision)
    assert LATENCY_S[index] <= 0.2


def test_conformal_meets_its_rate_where_the_bounds_of_others_do_not():
    """All but the seed are close below the limit: observed latencies are often beyond it."""
    shares = {}
    for name, settings in (("safe-gp-ucb", {}), ("conformal", {"violation_rate": 0.1})):
        scheduler = make(name, beta=0.01, **settings)
        rng, beyond = np.random.default_rng(0), []
        for _ in range(1500):
            decision = scheduler.ask()
            slow = 0.1 if decision.arm == FAST else 0.19
            latency_s = slow * math.exp(0.1 * rng.standard_normal())
            beyond.append(latency_s > 0.2)
            energy_j = 3.0 if decision.arm == FAST else 1.0
            scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
        shares[name] = np.mean(beyond[300:])
    assert shares["conformal"] == pytest.approx(0.1, abs=0.02)
    assert shares["safe-gp-ucb"] > 0.2


def test_the_risk_budget_is_what_was_put_in_less_what_was_risked():
    scheduler = make("risk-budget", violation_rate=0.01, start=2.0)
    risked = 0.0
    for _ in range(200):
        decision = scheduler.ask()
        if decision.reason.endswith("paid from the budget of risk"):
            risked += 1.0 - decision.p_feasible
        tell(scheduler, decision)
    assert scheduler.budget == pytest.approx(2.0 + 0.01 * 200 - risked)
    assert scheduler.budget >= 0 < risked


def test_config_ends_on_the_best_arm_and_is_not_safe_on_the_way():
    arms = play(make("config", seeds=[]), 300)
    best = np.where(LATENCY_S <= 0.2, ENERGY_J, np.inf).argmin()
    assert (arms[-50:] == best).all()
    assert (LATENCY_S[arms[:20]] > 0.2).any()


def test_the_price_of_excess_rises_with_violations_and_is_bounded():
    scheduler = make("primal-dual", seeds=[], dearest=3.0)
    prices = []
    for _ in range(100):
        play(scheduler, 1)
        prices.append(scheduler.prices["latency_s"])
    assert prices[0] == 0.0 < max(prices) <= 3.0


def test_linear_logs_are_known_from_a_few_arms_and_only_those():
    scheduler = make("safe-linucb")
    prior = scheduler.beliefs["latency_s"].prior_covariance
    assert np.linalg.matrix_rank(prior) == 4  # an intercept for each component, two slopes
    for index in (0, 3, 5, 8):
        scheduler.tell(scheduler.ask(available=[SPACE[index]]).id, energy_j=1.0, latency_s=0.1)
    assert scheduler.beliefs["latency_s"].sd().max() < 0.2


def test_a_sliding_window_is_ucb_on_its_last_tasks():
    scheduler = make("sliding-window-ucb", window=40, penalty=1.0)
    told = []
    rng = np.random.default_rng(1)
    for _ in range(300):
        decision = scheduler.ask()
        energy_j, latency_s = np.exp(rng.normal(size=2) * 0.3 - [0, 1.6])
        scheduler.tell(decision.id, energy_j=energy_j, latency_s=latency_s)
        told.append((decision.arm.index, math.log(energy_j) + (latency_s > 0.2)))
        last = told[-40:]
        for arm in CELLS:
            costs = [cost for index, cost in last if index == arm]
            assert scheduler.counts[arm] == len(costs)
            if costs:
                assert scheduler.costs()[arm] == pytest.approx(np.mean(costs))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sliding-window-ucb", {"window": 100}), ("discounted-ucb", {"discount": 0.98})],
)
def test_forgetful_bandits_notice_that_an_arm_became_expensive(name, settings):
    scheduler = make(name, **settings)
    best = int(np.bincount(play(scheduler, 400)[-50:]).argmax())
    for _ in range(200):
        decision = scheduler.ask()
        tell(scheduler, decision, dearer=10.0 if decision.arm.index == best else 1.0)
    assert (play(scheduler, 1) != best).all()


def test_exp3_draws_from_a_distribution_and_comes_to_prefer_the_cheap():
    scheduler = make("exp3", exploration=0.2)
    early, late = play(scheduler, 300), play(scheduler, 3000)[-1000:]
    assert ENERGY_J[late].mean() < 0.85 * ENERGY_J[early].mean()
    assert set(late) == set(CELLS)  # a share of even draws never ends


def test_constrained_ucb_takes_the_least_bound_that_may_be_feasible():
    scheduler = make("constrained-ucb")
    arms = play(scheduler, 500)
    assert arms[:12].tolist() == CELLS.tolist()
    best = np.where(LATENCY_S <= 0.2, ENERGY_J, np.inf).argmin()
    assert (arms[-100:] == best).mean() > 0.9


def test_profile_then_commit_profiles_in_order_and_never_looks_back():
    scheduler = make("profile-then-commit", rounds=3)
    arms = play(scheduler, 60)
    assert arms[:36].tolist() == 3 * CELLS.tolist()
    best = np.where(LATENCY_S <= 0.2, ENERGY_J, np.inf).argmin()
    assert (arms[36:] == best).all()
    assert (play(scheduler, 50, slower=9.0) == best).all()
