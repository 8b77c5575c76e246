"""Failed, stopped, cancelled and late runs, and what another board said: the corners of each."""

import math

import numpy as np
import pandas as pd
import pytest

from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.schedulers import Scheduler, make_scheduler

SPACE = ArmSpace([Factor("c", ["a", "b"]), Factor("x", [1, 2, 3, 4, 5])])
SEEDS = [SPACE[4], SPACE[9]]


def make(name, **changes):
    arguments = {"limits": {"latency_s": 0.2}, "seeds": SEEDS, **changes}
    return make_scheduler(name, SPACE, **arguments)


def test_a_stopped_run_teaches_the_adaptive_rule_a_limited_energy():
    scheduler = make("adaptive-safe-gp", limits={"latency_s": 0.2, "energy_j": 2.0})
    for _ in range(60):
        decision = scheduler.ask()
        energy_j = 1.0 if decision.arm.c == "a" else 1.5
        scheduler.tell(decision.id, latency_s=0.1, energy_j=energy_j)
    stopped = 0
    for _ in range(200):
        decision = scheduler.ask()
        if decision.arm.c == "a":
            scheduler.tell(decision.id, latency_s=0.1, above={"energy_j": 50.0})
            stopped += 1
        else:
            scheduler.tell(decision.id, latency_s=0.1, energy_j=1.5)
    assert stopped < 15


@pytest.mark.parametrize("scatter", [0.3, 0.5])
def test_doubt_about_another_board_stays_however_little_noise_is_seen(scatter):
    scheduler, rng = make("adaptive-safe-gp"), np.random.default_rng(0)
    rows = [{**arm.levels, "energy_j": 1.0, "latency_s": 0.16} for arm in SPACE]
    scheduler.warm_start(pd.DataFrame(rows), scatter=scatter)
    for _ in range(300):
        decision = scheduler.ask(available=SEEDS)
        noise = np.exp(0.003 * rng.standard_normal(2))
        scheduler.tell(decision.id, energy_j=noise[0], latency_s=0.16 * noise[1])
    scheduler.ask()
    belief = scheduler.beliefs["latency_s"]
    assert belief.noise_variance < 0.01**2  # not blurred by what other boards said
    assert belief.sd()[0] > 0.3 * scatter


@pytest.mark.parametrize("name", ["safe-gp-ucb", "adaptive-safe-gp"])
def test_a_failure_on_another_board_is_as_vague_as_all_it_says(name):
    scheduler = make(name)
    row = {**SPACE[2].levels, "energy_j": np.nan, "latency_s": np.nan, "failed": "no memory"}
    scheduler.warm_start(pd.DataFrame([row]), scatter=1.0)
    assert scheduler.beliefs["latency_s"].sd()[2] > 0.5


@pytest.mark.parametrize("name", ["ucb", "constrained-ucb", "conformal"])
def test_a_run_stopped_at_the_limit_did_not_meet_it(name):
    settings = {"penalty": 1.0} if name == "ucb" else {}
    scheduler, stopped = make(name, **settings), 0
    for _ in range(300):
        decision = scheduler.ask()
        if decision.arm.x == 5:
            scheduler.tell(decision.id, energy_j=1.5, latency_s=0.1)
        else:
            stopped += 1
            scheduler.tell(decision.id, energy_j=1.0, above={"latency_s": 0.2})
    assert stopped < 25


def test_without_a_time_now_is_the_latest_that_was_said():
    said, left_out = (make("safe-gp-ucb", forget_rate=0.002) for _ in range(2))
    for step in range(20):
        for scheduler, times in ((said, {"now": 1e4 + step}), (left_out, {})):
            decision = scheduler.ask(now=1e4 + step)
            scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1, **times)
    np.testing.assert_array_equal(
        said.beliefs["latency_s"].covariance, left_out.beliefs["latency_s"].covariance
    )


@pytest.mark.parametrize(
    "told",
    [
        {"failed": "no answer"},
        {"above": {"latency_s": 2.0}},
        {"energy_j": 1.0, "latency_s": 0.3},
    ],
)
def test_whatever_comes_late_says_less(told):
    sds = []
    for late in (0.0, 300.0):
        scheduler = make("safe-gp-ucb", forget_rate=0.01)
        decision = scheduler.ask(now=0.0)
        scheduler.ask(now=300.0)
        scheduler.tell(decision.id, now=300.0 - late, **told)
        sds.append(scheduler.beliefs["latency_s"].sd()[decision.arm.index])
    assert sds[1] > 3 * sds[0] or told.get("above")  # a far bound narrows little at any time
    assert sds[1] >= sds[0]


@pytest.mark.parametrize("name", ["ucb", "thompson", "epsilon-greedy", "discounted-ucb"])
def test_a_failure_before_any_result_does_not_hang_on_the_unit(name):
    played = []
    for unit in (1.0, 1000.0):
        scheduler, failed = make(name, objective="energy", rng=0), 0
        for _ in range(300):
            decision = scheduler.ask()
            if decision.arm.index == 0:
                scheduler.tell(decision.id, failed="no memory")
                failed += 1
            else:
                energy = unit * (5.0 + 0.1 * decision.arm.index)
                scheduler.tell(decision.id, energy=energy, latency_s=0.1)
        played.append(failed)
    assert played[0] == played[1] < 40


def test_arms_that_all_fail_at_first_are_each_tried_and_remembered_in_a_file(tmp_path):
    scheduler = make("ucb")
    for expected in range(len(SPACE)):
        decision = scheduler.ask()
        assert decision.arm.index == expected
        scheduler.tell(decision.id, failed="no answer")
    loaded = Scheduler.load(scheduler.save(tmp_path / "state"))
    for one in (scheduler, loaded):
        one.tell(one.ask().id, energy_j=3.0, latency_s=0.1)
        assert one.counts.sum() == len(SPACE) + 1


def test_a_component_is_taken_back_in_the_context_that_is_asked_for():
    loads = Factor("z", [0.0, 0.5])
    scheduler, rng = make("adaptive-safe-gp", contexts=[loads]), np.random.default_rng(0)
    back = None
    for task in range(600):
        context = {"z": loads.levels[task % 2] if task < 60 else 0.5}
        decision, noise = scheduler.ask(context), np.exp(0.02 * rng.standard_normal(2))
        on_a = decision.arm.c == "a"
        if on_a and 100 <= task < 130:
            scheduler.tell(decision.id, failed="gone")
            continue
        energy_j = (1.0 if on_a else 3.0) * noise[0]
        scheduler.tell(decision.id, energy_j=energy_j, latency_s=0.1 * noise[1])
        if on_a and task >= 130 and back is None:
            back = task
    assert back is not None and back < 300


@pytest.mark.parametrize("name", ["constrained-ucb", "profile-then-commit"])
def test_no_verdict_as_long_as_arms_are_still_running(name):
    scheduler = make(name, **({"rounds": 1} if name == "profile-then-commit" else {}))
    decisions = [scheduler.ask() for _ in SPACE]
    scheduler.tell(decisions[0].id, energy_j=1.0, latency_s=0.5)
    assert not scheduler.ask().infeasible


@pytest.mark.parametrize("name", ["adaptive-safe-gp", "risk-budget"])
def test_what_a_cancelled_decision_would_have_risked_is_given_back(name):
    scheduler, rng = make(name), np.random.default_rng(0)

    def left():
        return scheduler.budget() if name == "adaptive-safe-gp" else scheduler.budget

    for _ in range(10):
        decision = scheduler.ask()
        noise = np.exp(0.02 * rng.standard_normal(2))
        latency_s = 0.19 * noise[0] * (5 / decision.arm.x) ** 0.3
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=noise[1] * decision.arm.x)
    before = left()
    for _ in range(40):
        scheduler.cancel(scheduler.ask().id)
    assert left() >= before - 1e-9


def test_an_oracle_in_single_precision_comes_back_from_its_file(tmp_path):
    truth = {name: np.full(10, 0.1, np.float32) for name in ("energy_j", "latency_s")}
    scheduler = make("oracle", truth=truth)
    loaded = Scheduler.load(scheduler.save(tmp_path / "state"))
    assert loaded.ask().arm == scheduler.ask().arm


def test_a_limited_energy_is_as_likely_within_as_not_beforehand():
    scheduler = make("adaptive-safe-gp", limits={"latency_s": 0.2, "energy_j": 2.0})
    bounds = scheduler.belief_table()[["energy_j_low", "energy_j_high"]]
    assert np.log(bounds).mean(axis=1).to_numpy() == pytest.approx(math.log(2.0))
