"""Energy over the oracle and true violations of the schedulers, on several families of tables.

    python benchmarks/scheduler_quality.py [--tables 20] [--tasks 500] [--rules NAME ...]

Every rule plays the same tables with the same noise, 3 % or 15 % of a table's own standard
deviation. With drift the component of the best arm becomes 35 % slower at half-time. Notebook
``08_ablations`` plays more rules on fewer and smaller tables.
"""

from __future__ import annotations

import argparse
import os
from itertools import product

from mllm_sched.experiments.random_tables import PENALISED, Trial, play_all, summary
from mllm_sched.experiments.runner import Rule

RULES = {
    "adaptive-safe-gp": {},
    "safe-gp-ucb": {},
    "ucb": PENALISED,
    "thompson": PENALISED,
    "epsilon-greedy": PENALISED,
}
CASES = [
    *product(("roofline", "rough", "queueing"), (48, 240)),
    ("board", 60),
    ("published", 120),
]
NOISES = (0.03, 0.15)


def main() -> None:
    """Print one table: energy over oracle, median (mean) over tables, and true violations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    options = parser.parse_args()
    trials = [
        Trial(Rule(name, name, RULES[name]), family, arms, noise, options.tasks)
        for (family, arms), noise, name in product(CASES, NOISES, options.rules)
    ]
    rows = summary(play_all(trials, options.tables), ["drift", "family", "noise", "scheduler"])
    rows["cell"] = [
        f"{row.median:.3f} ({row.energy:.3f}) / {100 * row.violations:.2f} %"
        for row in rows.itertuples()
    ]
    wide = rows.pivot(index=["drift", "family", "noise"], columns="scheduler", values="cell")
    print(wide[options.rules].to_string())


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    main()
