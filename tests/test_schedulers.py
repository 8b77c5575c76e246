import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.schedulers import Hyperparameters, make_scheduler, scheduler_names
from mllm_sched.schedulers.gp import covariance
from mllm_sched.schedulers.references import truly_best

SPACE = ArmSpace.agx_orin()
LIMITS = {"latency_s": 0.2}
FAST = SPACE.arm(component="gpu", power_w=60, load=1.0)


def truth(seed=0, space=SPACE):
    """A smooth landscape: latency falls with power and load, energy has its own shape."""
    rng = np.random.default_rng(seed)
    x = space.features()
    latency = 0.3 * np.exp(-x[:, 1] - 0.8 * x[:, 2] + 0.2 * rng.normal(size=3)[x[:, 0].astype(int)])
    energy = np.exp(0.5 * x[:, 1] + (x[:, 2] - 0.3) ** 2 + 0.4 * x[:, 0])
    return {"energy_j": energy, "latency_s": latency}


def make(name, **changes):
    arguments = {"limits": LIMITS, "seeds": [FAST], "rng": 0, **changes}
    if name == "oracle":
        arguments.setdefault("truth", truth())
    return make_scheduler(name, arguments.pop("space", SPACE), **arguments)


def play(scheduler, means, steps, noise=0.03, seed=0):
    rng, arms = np.random.default_rng(seed), []
    for _ in range(steps):
        decision = scheduler.ask()
        factors = np.exp(noise * rng.standard_normal(2))
        scheduler.tell(
            decision.id,
            energy_j=means["energy_j"][decision.arm.index] * factors[0],
            latency_s=means["latency_s"][decision.arm.index] * factors[1],
        )
        arms.append(decision.arm.index)
    return np.array(arms)


SAFE = ("safe-gp-ucb", "adaptive-safe-gp", "goose")
BEYOND = Hyperparameters(1.0, 0.01, (1.0, 1.0, 1.0))  # a correlation has to be below 1

every_scheduler = pytest.mark.parametrize("name", scheduler_names())


@every_scheduler
def test_only_available_arms_are_chosen(name):
    allowed = [SPACE[index] for index in (59, 17, 3, 19)]
    scheduler = make(name)
    for _ in range(30):
        decision = scheduler.ask(available=allowed)
        assert decision.arm in allowed
        scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1)
    with pytest.raises(ValueError, match="no arm to choose from"):
        scheduler.ask(available=[])


@every_scheduler
def test_tell_refuses_an_unknown_or_finished_decision(name):
    scheduler = make(name)
    decision = scheduler.ask()
    with pytest.raises(ValueError, match=r"decision 99: unknown; open decisions: \[0\]"):
        scheduler.tell(99, energy_j=1.0, latency_s=0.1)
    scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1)
    with pytest.raises(ValueError, match="decision 0: finished"):
        scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1)


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf])
def test_a_bad_measurement_is_refused_and_the_decision_stays_open(value):
    scheduler = make("ucb")
    decision = scheduler.ask()
    with pytest.raises(ValueError, match=r"latency_s=.*expected a finite number above 0"):
        scheduler.tell(decision.id, energy_j=1.0, latency_s=value)
    with pytest.raises(ValueError, match="no value for latency_s"):
        scheduler.tell(decision.id, energy_j=1.0)
    scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ucb", {"limits": {}}, "give at least one"),
        ("ucb", {"limits": {"latency_s": -0.1}}, "limit latency_s=-0.1"),
        ("ucb", {"limits": {"latency_s": math.nan}}, "limit latency_s=nan"),
        ("sage", {}, "'sage': expected one of safe-gp-ucb, adaptive"),
        ("safe-gp-ucb", {"hyperparameters": {"latency_s": BEYOND}}, "expected a correlation"),
        *((name, {"seeds": []}, f"{name} needs at least one arm") for name in SAFE),
        ("safe-gp-ucb", {"beta": 0}, "beta=0"),
        ("safe-gp-ucb", {"forget_rate": 1.0}, "forget_rate=1.0"),
        ("ucb", {"penalty": -1}, "penalty=-1"),
        ("ucb", {"exploration": -1}, "exploration=-1"),
        ("thompson", {"exploration": math.inf}, "exploration=inf"),
        ("epsilon-greedy", {"epsilon": 1.1}, "epsilon=1.1"),
        ("fixed", {"seeds": []}, "give arm="),
        ("oracle", {"truth": None}, "truth="),
        ("adaptive-safe-gp", {"violation_rate": -0.1}, r"violation_rate=-0\.1"),
        ("adaptive-safe-gp", {"horizon": 0}, "horizon=0"),
        ("adaptive-safe-gp", {"certainty": 0.4}, r"certainty=0\.4"),
        ("stageopt", {"expansion": -1}, "expansion=-1"),
        ("conformal", {"violation_rate": 0}, "violation_rate=0"),
        ("conformal", {"step": 0}, "step=0"),
        ("risk-budget", {"violation_rate": 1}, "violation_rate=1"),
        ("risk-budget", {"start": -1}, "start=-1"),
        ("primal-dual", {"step": 0}, "step=0"),
        ("primal-dual", {"dearest": math.inf}, "dearest=inf"),
        ("sliding-window-ucb", {"window": 0}, "window=0"),
        ("discounted-ucb", {"discount": 0}, "discount=0"),
        ("exp3", {"exploration": 0}, "exploration=0"),
        ("constrained-ucb", {"exploration": -1}, "exploration=-1"),
        ("profile-then-commit", {"rounds": 0}, "rounds=0"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make(name, **settings)


def test_warm_start_needs_the_factors_and_is_learned():
    scheduler = make("safe-gp-ucb")
    means = truth()
    rows = [
        {**arm.levels, **{q: means[q][arm.index] for q in means}} for arm in SPACE for _ in range(3)
    ]
    scheduler.warm_start(pd.DataFrame(rows))
    certified, _ = scheduler.safe_set()
    assert certified.sum() > 10 and (means["latency_s"][certified] <= 0.2).all()
    with pytest.raises(ValueError, match="lacks the columns load"):
        scheduler.warm_start(pd.DataFrame(rows).drop(columns="load"))


# safe GP-UCB


@given(st.integers(0, 1000))
@settings(max_examples=8)
def test_safe_gp_ucb_hardly_ever_violates_where_its_model_holds(seed):
    """Landscapes drawn from its own prior, with a trusted seed that is truly safe."""
    values = {q: Hyperparameters(0.5, 0.03**2, (0.5, 1.0, 1.0)) for q in ("energy_j", "latency_s")}
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(covariance(SPACE, values["latency_s"]) + 1e-10 * np.eye(60))
    means = {
        "energy_j": np.exp(root @ rng.standard_normal(60)),
        "latency_s": 0.2 * np.exp(root @ rng.standard_normal(60)),
    }
    safest = SPACE[int(means["latency_s"].argmin())]
    arms = play(make("safe-gp-ucb", seeds=[safest], hyperparameters=values), means, 200, seed=seed)
    assert (means["latency_s"][arms] > 0.2).mean() <= 0.05


def test_a_seed_proven_slow_is_dropped_and_the_fallback_is_stated():
    scheduler = make("safe-gp-ucb")
    reasons = []
    for _ in range(60):
        decision = scheduler.ask()
        assert not decision.certified
        reasons.append((decision.reason, decision.infeasible))
        scheduler.tell(decision.id, energy_j=1.0, latency_s=2.0)
    assert [*dict.fromkeys(reasons)] == [
        ("trusted seed", False),
        ("no arm is certified: most likely within the limits", False),
        ("no arm can meet the limits: least beyond them", True),
    ]


def test_forgetting_widens_what_was_certain():
    sizes = {}
    for rate in (0.0, 0.2):
        scheduler = make("safe-gp-ucb", forget_rate=rate)
        play(scheduler, truth(), 50)
        scheduler.ask(now=100.0)
        sizes[rate] = scheduler.safe_set()[0].sum()
    assert sizes[0.0] > 5 and sizes[0.2] == 0


def test_each_context_has_its_own_limit_set():
    scheduler = make("safe-gp-ucb", contexts=[Factor("background_load", [0.0, 0.5])])
    with pytest.raises(ValueError, match="expected a level for background_load"):
        scheduler.ask()
    means = truth()
    for _ in range(150):
        for load in (0.0, 0.5):
            decision = scheduler.ask(context={"background_load": load})
            index = decision.arm.index
            latency = means["latency_s"][index] / (1 - load)
            scheduler.tell(decision.id, energy_j=means["energy_j"][index], latency_s=latency)
    quiet, busy = scheduler.safe_set()[0].reshape(2, 60).sum(axis=1)
    assert quiet > busy


# baselines


@pytest.mark.parametrize("name", ["ucb", "thompson", "epsilon-greedy"])
def test_baselines_try_every_arm_once_then_find_the_cheapest(name):
    means = truth()
    arms = play(make(name), means, 1500)
    assert arms[:60].tolist() == list(range(60))
    cheap = means["energy_j"] <= 1.1 * means["energy_j"].min()
    assert cheap[arms[-300:]].mean() > 0.8


@pytest.mark.parametrize("name", ["ucb", "thompson", "epsilon-greedy"])
def test_a_penalty_teaches_them_the_limit(name):
    means = truth()
    shares = [
        (means["latency_s"][play(make(name, penalty=penalty), means, 1500)[-500:]] > 0.2).mean()
        for penalty in (0.0, 1.0)
    ]
    assert shares[0] > 0.5 and shares[1] < 0.2


def test_ucb1_is_the_textbook_index():
    space = ArmSpace([Factor("a", [1, 2])])
    scheduler = make("ucb", space=space, seeds=[], exploration=1.0)
    for energy in (1.0, 4.0):
        scheduler.tell(scheduler.ask().id, energy_j=energy, latency_s=0.1)
    # t = 2: costs 0 and ln 4, both with bonus sqrt(2 ln 2).
    # t = 8: 0 - sqrt(2 ln 8 / 7) = -0.77 against 1.39 - sqrt(2 ln 8) = -0.65.
    # t = 14: -sqrt(2 ln 14 / 13) = -0.64 against 1.39 - sqrt(2 ln 14) = -0.91.
    for taken in (0, 0, 1):
        assert scheduler.ask().arm.index == taken
        for _ in range(6):
            decision = scheduler.ask(available=[space[0]])
            scheduler.tell(decision.id, energy_j=1.0, latency_s=0.1)


def test_the_oracle_never_takes_an_arm_that_cannot_run():
    values = {"energy_j": [1.0, float("nan")], "latency_s": [9.0, 1.0]}
    assert truly_best(values, "energy_j", {"latency_s": 2.0}) == (0, False)
    values["energy_j"] = [1.0, 5.0]
    assert truly_best(values, "energy_j", {"latency_s": 2.0}) == (1, True)
    assert truly_best(values, "energy_j", {"latency_s": 0.5}) == (1, False)  # the fastest


def test_the_oracle_takes_the_cheapest_feasible_arm_of_a_changing_truth():
    means = truth()
    scheduler = make("oracle", truth=lambda: means)
    for _ in range(2):
        feasible = np.where(means["latency_s"] <= 0.2, means["energy_j"], np.inf)
        assert scheduler.ask().arm.index == feasible.argmin()
        means["latency_s"][feasible.argmin()] = 1.0
