"""Our schedulers against the libraries of the field: same tables, same noise, same trusted arms.

    python benchmarks/against_peers.py [--tables 10] [--tasks 200] [--rules NAME ...]

Quality is energy over the oracle's, share of tasks on an arm truly beyond the limit, and regret in
units of the oracle's energy of one task. Noise is 3 % or 15 % of a table's own standard deviation.
Rules that take a good part of a second for a decision play fewer tables and tasks, at 3 % alone;
beside them stand ours on just these tables and tasks. *Ahead* says where another rule is better
than ``adaptive-safe-gp`` on the same rows. The settings of every library are in its adapter.

Nothing is tuned to a family. Peers that know no trusted arms but as first points, such as BoTorch,
may try any component; on ``board`` one of three, the CPU, is far dearer and not trusted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

CASES = (("queueing", 48), ("board", 60), ("published", 120), ("roofline", 48))
NOISES = (0.03, 0.15)
SLOW = {"BoTorch constrained EI, refit": 4, "bayesian-optimization, refit": 3}  # tables
SLOW_TASKS = 100
OURS = ("adaptive-safe-gp", "safe-gp-ucb", "ucb + penalty")
PACKAGES = {
    **{"botorch": "botorch", "gpytorch": "gpytorch", "sklearn": "scikit-learn", "river": "river"},
    **{"mabwiser": "mabwiser", "bayes_opt": "bayesian-optimization", "safeopt": "safeopt"},
}


@dataclass(frozen=True)
class Game:
    """One rule on one table."""

    rule: str
    family: str
    arms: int
    noise: float
    seed: int
    tasks: int


def play(game: Game) -> np.ndarray:
    """True energy over the oracle's, and whether beyond the limit; shape (2, tasks)."""
    import torch
    from peers import peers

    from mllm_sched.experiments.random_tables import FAMILIES

    torch.set_num_threads(1)
    table = FAMILIES[game.family](game.seed, game.arms)
    spread, spread_w = table.noise_sds(game.noise)
    trusted = [arm.index for arm in table.trusted]
    peer = peers()[game.rule](table.space, table.limit_s, trusted, game.seed)
    played = np.empty((2, game.tasks))
    # Noise belongs to the task, whatever arm it runs on: the same for every rule.
    noise = np.random.default_rng(game.seed).standard_normal((game.tasks, 2))
    for task, (first, second) in enumerate(noise):
        arm = peer.ask()
        latency_s = table.latency_s[arm] * math.exp(spread * first)
        energy_j = table.energy_j[arm] * math.exp(spread * first + spread_w * second)
        peer.tell(arm, energy_j, latency_s)
        played[:, task] = table.energy_j[arm] / table.best_j(), table.latency_s[arm] > table.limit_s
    return played


def games(rules: Sequence[str], tables: int, tasks: int) -> list[Game]:
    """All that is played, the slowest first."""
    listed = []
    for rule in sorted(rules, key=lambda name: name not in SLOW):
        slow = rule in SLOW
        for family, arms in CASES:
            for noise in NOISES[:1] if slow else NOISES:
                for seed in range(min(tables, SLOW.get(rule, tables))):
                    length = min(tasks, SLOW_TASKS) if slow else tasks
                    listed.append(Game(rule, family, arms, noise, seed, length))
    return listed


def summary(played: dict[Game, np.ndarray], tables: int, tasks: int) -> pd.DataFrame:
    """One row per rule, family, noise and subset; of ours one for every subset there is."""
    present = {game.rule for game in played}
    subsets = {(min(tables, SLOW[rule]), min(tasks, SLOW_TASKS)) for rule in present & set(SLOW)}
    rows = []
    for (rule, family, arms, noise), group in groupby(
        played, key=lambda game: (game.rule, game.family, game.arms, game.noise)
    ):
        runs = [played[game] for game in group]
        sizes = {(len(runs), runs[0].shape[1])}
        if rule in OURS and noise == NOISES[0]:
            sizes |= subsets
        for count, length in sorted(sizes, reverse=True):
            energy, beyond = np.stack([run[:, :length] for run in runs[:count]], axis=1)
            per_table = energy.mean(axis=1)
            rows.append(
                {
                    "family": f"{family} {arms}",
                    "noise": noise,
                    "tasks": length,
                    "tables": count,
                    "rule": rule,
                    "energy_median": np.median(per_table),
                    "energy_mean": per_table.mean(),
                    "violations": beyond.mean(),
                    "regret": np.maximum(energy - 1, 0).sum(axis=1).mean(),
                }
            )
    return _ahead(pd.DataFrame(rows))


def _ahead(table: pd.DataFrame) -> pd.DataFrame:
    """Where a rule is better than ours on the same tables and tasks."""
    subset = ["family", "noise", "tasks", "tables"]
    measures = {"energy": "energy_median", "violations": "violations", "regret": "regret"}
    reference = table[table["rule"] == OURS[0]][[*subset, *measures.values()]]
    both = table.merge(reference, on=subset, how="left", suffixes=("", "_ours"))
    ahead = [
        " ".join(word for word, name in measures.items() if row[name] < row[f"{name}_ours"] - 5e-5)
        for _, row in both.iterrows()
    ]
    return table.assign(ahead=ahead).sort_values(subset, kind="stable")


def show(quality: pd.DataFrame) -> None:
    """Print one table per family, noise and subset, least energy first."""
    for (family, noise, tasks, tables), rows in quality.groupby(
        ["family", "noise", "tasks", "tables"], sort=False
    ):
        print(f"\n{family}, noise {noise:.0%}, {tasks} tasks, n = {tables} tables")
        rows = rows.sort_values("energy_median")
        text = pd.DataFrame(
            {
                "rule": rows["rule"],
                "energy over oracle, median (mean)": [
                    f"{row.energy_median:.3f} ({row.energy_mean:.3f})" for row in rows.itertuples()
                ],
                "beyond the limit": [f"{value:.2%}" for value in rows["violations"]],
                "regret": rows["regret"].round(1),
                "ahead of adaptive-safe-gp in": rows["ahead"],
            }
        )
        print(text.to_string(index=False))


def quicker(cost: pd.DataFrame) -> pd.Series:
    """Where a rule takes less time than ours that the others are compared with."""
    keys = ["arms", "measurements"]
    reference = cost[cost["rule"] == OURS[0]].set_index(keys)["ms"]
    ours = reference.reindex(pd.MultiIndex.from_frame(cost[keys])).to_numpy()
    return pd.Series(np.where(cost["ms"] < ours, "time", ""), cost.index)


def versions() -> dict[str, str]:
    """Of every library, or that it is not there."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def redraw() -> None:
    """Draw the figures again from the tables on record; what was measured stays as it is."""
    import peers_plots

    from mllm_sched import paths
    from mllm_sched.experiments.provenance import as_png, as_svg, checksum

    folder = paths.RESULTS / "against_peers"
    record = json.loads((folder / "provenance.json").read_text())
    record["figures"] = {}
    for name, draw in (("quality", peers_plots.quality), ("cost", peers_plots.cost)):
        figure = draw(pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""]))
        for ending, made in ((".svg", as_svg), (".png", as_png)):
            file = folder / f"{name}{ending}"
            file.write_bytes(made(figure.get_figure(root=True)))
            record["figures"][file.name] = checksum(file)
    (folder / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"drawn again: {folder.name}")


def main() -> None:
    """Play, time, print, and write ``results/against_peers``."""
    import peers_plots
    from peers import peers
    from peers_cost import costs

    from mllm_sched.experiments.provenance import save_results

    known = peers()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rules", nargs="*", default=list(known), choices=list(known))
    parser.add_argument("--redraw", action="store_true", help="only draw the figures again")
    options = parser.parse_args()
    if options.redraw:
        return redraw()
    for rule in options.rules:
        if why := known[rule].missing():
            print(f"{rule}: not run: {why}")
    rules = [rule for rule in options.rules if not known[rule].missing()]
    listed = games(rules, options.tables, options.tasks)
    results = Parallel(n_jobs=-1, verbose=1)(delayed(play)(game) for game in listed)
    quality = summary(dict(zip(listed, results, strict=True)), options.tables, options.tasks)
    show(quality)
    print("\nCost of a decision, one thread:")
    cost = costs(rules)
    cost["ahead"] = quicker(cost)
    wide = cost.pivot(index="rule", columns=["arms", "measurements"], values="ms").loc[rules]
    print(
        "\nms, median ask + tell\n" + wide.to_string(float_format="{:.3g}".format, na_rep="not run")
    )
    counts = cost[cost["ahead"] != ""].groupby("rule", sort=False).size()
    for rule, cells in counts.items():
        print(f"quicker than {OURS[0]}: {rule}, in {cells} of {len(cost) // len(rules)} cells")
    figures = {"quality": peers_plots.quality(quality), "cost": peers_plots.cost(cost)}
    parameters = {"tables": options.tables, "tasks": options.tasks, "noises": NOISES}
    parameters |= {"rules": rules, "libraries": versions()}
    folder = save_results("against_peers", {"quality": quality, "cost": cost}, figures, parameters)
    print(f"\nwritten to {folder.name}")


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    main()
