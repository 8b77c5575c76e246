"""What a decision costs: median ask + tell, in one run, against the libraries of the field.

``make bench`` runs it. Figures are ratios within this run; the microseconds are this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gpytorch
import numpy as np
import pandas as pd
import torch
from river import bandit

from mllm_sched import ArmSpace, make_scheduler
from mllm_sched.schedulers.gp import Hyperparameters
from mllm_sched.schedulers.hyperparameter_fit import ArmGP

SPACE = ArmSpace.agx_orin()
OBSERVATIONS = 500
LIMITS = {"latency_s": 0.2}


def landscape() -> tuple[np.ndarray, np.ndarray]:
    """True energy (J) and latency (s) of every arm, each of shape (60,)."""
    code, power, load = SPACE.features().T
    return np.exp(0.5 * power + (load - 0.6) ** 2 + 0.4 * code), 0.3 * np.exp(-power - 0.8 * load)


ENERGY_J, LATENCY_S = landscape()


def outcomes(seed: int = 0) -> Iterator[tuple[float, float]]:
    """Noise factors of energy and latency, without end; drawn outside the timed part."""
    rng = np.random.default_rng(seed)
    while True:
        first, second = np.exp(0.03 * rng.standard_normal(2))
        yield float(first), float(second)


def ours(name: str, steps: int) -> np.ndarray:
    """Seconds of every ask + tell of one of our schedulers, shape (steps,)."""
    scheduler = make_scheduler(name, SPACE, limits=LIMITS, seeds=[SPACE[19]])
    noise, seconds = outcomes(), np.empty(steps)
    for step in range(steps):
        begun = time.perf_counter()
        decision = scheduler.ask()
        asked = time.perf_counter() - begun
        energy, latency = next(noise)
        energy_j = ENERGY_J[decision.arm.index] * energy
        latency_s = LATENCY_S[decision.arm.index] * latency
        begun = time.perf_counter()
        scheduler.tell(decision.id, energy_j=energy_j, latency_s=latency_s)
        seconds[step] = asked + time.perf_counter() - begun
    return seconds


def river_ucb(steps: int) -> np.ndarray:
    """The same for river's UCB, which models one quantity and knows no limit."""
    policy, arms = bandit.UCB(delta=1.0, seed=0), list(range(len(SPACE)))
    noise, seconds = outcomes(), np.empty(steps)
    for step in range(steps):
        begun = time.perf_counter()
        arm = policy.pull(arms)
        asked = time.perf_counter() - begun
        reward = -float(ENERGY_J[arm] * next(noise)[0])
        begun = time.perf_counter()
        policy.update(arm, reward)
        seconds[step] = asked + time.perf_counter() - begun
    return seconds


def gpytorch_exact(repeats: int = 15) -> np.ndarray:
    """One safe decision by two GPyTorch exact GPs fed the same observations, hyperparameters kept.

    An observation changes the training data, so each decision predicts from scratch.
    """
    rng = np.random.default_rng(0)
    arms = rng.integers(0, len(SPACE), OBSERVATIONS)
    features, everywhere = SPACE.features()[arms], torch.as_tensor(SPACE.features().copy())
    values = Hyperparameters.default(SPACE)
    models = [ArmGP(SPACE, features, np.log(y[arms]), values, 0.0) for y in (ENERGY_J, LATENCY_S)]
    seconds = np.empty(repeats)
    for repeat in range(repeats):
        begun = time.perf_counter()
        with torch.no_grad(), gpytorch.settings.fast_pred_var(False):
            bounds = []
            for model in models:
                model.set_train_data(model.train_inputs[0], model.train_targets, strict=False)
                belief = model.eval()(everywhere)
                bounds.append((belief.mean, belief.stddev))
        (energy, energy_sd), (latency, latency_sd) = bounds
        safe = latency + 2 * latency_sd <= np.log(LIMITS["latency_s"])
        torch.where(safe, energy - 2 * energy_sd, torch.inf).argmin()
        seconds[repeat] = time.perf_counter() - begun
    return seconds


def median_us(run: Callable[[], np.ndarray], tail: int) -> float:
    """Median of the last ``tail`` decisions, in microseconds."""
    return float(np.median(run()[-tail:]) * 1e6)


def main() -> None:
    """Measure and print; exit with an error if a bound that the README states does not hold."""
    torch.set_num_threads(1)
    ours("safe-gp-ucb", 10_050)  # warm-up: the clock of the processor rises under load
    runs = [ours("safe-gp-ucb", 10_050) for _ in range(3)]
    at = {
        t: float(np.median([run[t - 50 : t + 50] for run in runs]) * 1e6)
        for t in (100, 500, 10_000)
    }
    river = median_us(lambda: river_ucb(OBSERVATIONS + 50), 100)
    gpytorch_us = median_us(gpytorch_exact, 15)
    rows = [
        ("safe-gp-ucb, t = 100", at[100]),
        ("safe-gp-ucb, t = 500", at[500]),
        ("safe-gp-ucb, t = 10,000", at[10_000]),
        *((name, median_us(lambda n=name: ours(n, 550), 100)) for name in ("ucb", "thompson")),
        ("river UCB, one unconstrained model", river),
        ("GPyTorch, two exact GPs, 500 observations", gpytorch_us),
    ]
    table = pd.DataFrame(rows, columns=["ask + tell at 60 arms", "median, us"])
    print(table.round(1).to_string(index=False))
    checks = [
        ("GPyTorch over safe-gp-ucb", gpytorch_us / at[500], ">=", 300.0),
        ("safe-gp-ucb over river UCB", at[500] / river, "<=", 2.0),
        ("t = 10,000 over t = 100", at[10_000] / at[100], "<=", 1.2),
    ]
    failed = False
    for what, ratio, sign, bound in checks:
        held = ratio >= bound if sign == ">=" else ratio <= bound
        failed |= not held
        print(f"{what}: {ratio:.2f} (wanted {sign} {bound:g}): {'held' if held else 'MISSED'}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
