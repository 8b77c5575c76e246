"""Energy over the oracle and true violations of the schedulers, on several families of tables.

    python benchmarks/scheduler_quality.py [--tables 20] [--tasks 500] [--rules NAME ...]

Every rule plays the same tables with the same noise, 3 % or 15 % of a table's own standard
deviation. With drift the component of the best arm becomes 35 % slower at half-time.
"""

from __future__ import annotations

import argparse
import math
import os
from itertools import product

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from mllm_sched import make_scheduler
from mllm_sched.study.families import FAMILIES, Table

RULES = {
    "adaptive-safe-gp": {},
    "safe-gp-ucb": {},
    "ucb": {"penalty": 1.0},
    "thompson": {"penalty": 1.0},
    "epsilon-greedy": {"penalty": 1.0},
}
CASES = [
    *product(("roofline", "rough", "queueing"), (48, 240)),
    ("board", 60),
    ("published", 120),
]
NOISES = (0.03, 0.15)


def play(
    rule: str, table: Table, tasks: int, noise: float, seed: int, drift: bool
) -> tuple[float, float]:
    """Mean energy over the oracle's, and share of tasks on an arm truly beyond the limit."""
    rng = np.random.default_rng(seed)
    spread = noise * np.log(table.latency_s).std()
    spread_w = noise * np.log(table.energy_j / table.latency_s).std()
    scheduler = make_scheduler(
        rule,
        table.space,
        limits={"latency_s": table.limit_s},
        seeds=table.trusted,
        rng=seed,
        **RULES[rule],
    )
    best = int(np.where(table.latency_s <= table.limit_s, table.energy_j, np.inf).argmin())
    energies, violations = np.empty(tasks), np.empty(tasks, bool)
    for task in range(tasks):
        if drift and task == tasks // 2:
            table = table.with_slower(str(table.space[best].component), 1.35)
        decision = scheduler.ask()
        arm = decision.arm.index
        first, second = rng.standard_normal(2)
        latency_s = table.latency_s[arm] * math.exp(spread * first)
        energy_j = table.energy_j[arm] * math.exp(spread * first + spread_w * second)
        scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
        energies[task] = table.energy_j[arm] / table.best_j()
        violations[task] = table.latency_s[arm] > table.limit_s
    return float(energies.mean()), float(violations.mean())


def case(
    rule: str, family: str, arms: int, noise: float, drift: bool, tables: int, tasks: int
) -> dict[str, object]:
    """One row of the result: medians and means over some tables."""
    played = [
        play(rule, FAMILIES[family](seed, arms), tasks, noise, seed, drift)
        for seed in range(tables)
    ]
    energy, violations = np.array(played).T
    return {
        "family": f"{family} {arms}",
        "noise": noise,
        "drift": drift,
        "rule": rule,
        "cell": f"{np.median(energy):.3f} ({energy.mean():.3f}) / {100 * violations.mean():.2f} %",
    }


def main() -> None:
    """Print one table: energy over oracle, median (mean) over tables, and true violations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    options = parser.parse_args()
    jobs = [
        delayed(case)(rule, family, arms, noise, drift, options.tables, options.tasks)
        for (family, arms), noise, drift, rule in product(
            CASES, NOISES, (False, True), options.rules
        )
    ]
    rows = pd.DataFrame(Parallel(n_jobs=-1)(jobs))
    wide = rows.pivot(index=["drift", "family", "noise"], columns="rule", values="cell")
    print(wide[options.rules].to_string())


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    main()
