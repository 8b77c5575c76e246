"""A device of twelve arms whose truth is known: what tests of schedulers play on."""

import numpy as np
import pandas as pd

from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.schedulers import make_scheduler

SPACE = ArmSpace(
    [
        Factor("component", ["gpu", "dla"]),
        Factor("power_w", [15, 30, 60], log=True),
        Factor("load", [0.5, 1.0]),
    ]
)
X = SPACE.features()
LATENCY_S = 0.29 * np.exp(-0.8 * X[:, 1] - 0.6 * X[:, 2])
ENERGY_J = np.exp(0.5 * X[:, 1] + 0.4 * X[:, 0] + (X[:, 2] - 0.3) ** 2)
FAST = SPACE.arm(component="gpu", power_w=60, load=1.0)


def make(name, **changes):
    arguments = {"limits": {"latency_s": 0.2}, "seeds": [FAST], "rng": 0, **changes}
    return make_scheduler(name, SPACE, **arguments)


def tell(scheduler, decision, slower=1.0, dearer=1.0, noise=0.0, rng=None):
    """What the device measures; the noise is that of log latency and of log power."""
    first, second = np.exp(noise * rng.standard_normal(2)) if rng else (1.0, 1.0)
    index = SPACE.index(decision.arm)
    latency_s = LATENCY_S[index] * slower * first
    energy_j = ENERGY_J[index] * dearer * first * second
    scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)


def play(scheduler, tasks, noise=0.02, seed=0, slower=1.0, dearer=1.0):
    """The arms of some tasks, one after another."""
    rng, arms = np.random.default_rng(seed), []
    for _ in range(tasks):
        decision = scheduler.ask()
        tell(scheduler, decision, slower, dearer, noise, rng)
        arms.append(SPACE.index(decision.arm))
    return np.array(arms)


def table(arms=SPACE, repeats=1, **columns):
    """What the device would measure of some arms, without noise."""
    return pd.DataFrame(
        [
            {**arm.levels, "latency_s": LATENCY_S[arm.index], "energy_j": ENERGY_J[arm.index]}
            for arm in arms
            for _ in range(repeats)
        ]
    ).assign(**columns)
