"""What a running agent learned, task by task: from its journal, now or as it was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mllm_sched import paths
from mllm_sched.study.metrics import interval
from mllm_sched.study.plots import scheduler_colour, titled

RECORDED = paths.DATA / "closed_loop"
ADAPTIVE, FIXED = "Adaptive safe GP", "Fixed at full power"
WINDOW = 25  # tasks of a moving median
ARM = ("precision", "threads")
METRICS = {
    "mllm_sched_decisions_total": "decisions",
    "mllm_sched_tasks_total": "tasks encoded",
    "mllm_sched_energy_joules_total": "energy, J",
    "mllm_sched_violations_total": "above the limit",
    "mllm_sched_safe_arms": "arms certified",
    "mllm_sched_shed_total": "requests refused",
}
"""Of an agent, and how a notebook calls them."""


def read_recorded(path: str | Path) -> pd.DataFrame:
    """A recorded loop, as ``benchmarks/closed_loop.py`` writes it; its tasks in their order.

    Returns
    -------
    The columns of ``read_journal`` and ``scheduler``; ``task`` counts the tasks of each scheduler
    from 1, and ``arm`` names the arm.
    """
    table = pd.read_csv(paths.resolve(path), dtype={"failed": str}, keep_default_na=True)
    return numbered(table)


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """A journal's table with ``task`` and ``arm``."""
    numbers = table.groupby("scheduler").cumcount() + 1 if len(table) else []
    arms = [", ".join(map(str, row)) for row in table[list(ARM)].itertuples(index=False)]
    return table.assign(task=numbers, arm=arms, failed=table["failed"].fillna(""))


def summary(table: pd.DataFrame, blocks: int = 5) -> pd.DataFrame:
    """Energy and latency of an average task, and violations, over equal parts of the run.

    A task is a violation if its encoding was measured above the limit, or failed.

    Returns
    -------
    One row for each scheduler and part: ``tasks``, ``energy_j``, ``latency_s``, ``violations``.
    """
    parts = []
    for scheduler, rows in table.groupby("scheduler", sort=False):
        for part in np.array_split(np.arange(len(rows)), min(blocks, len(rows))):
            chosen = rows.iloc[part]
            parts.append(
                {
                    "scheduler": scheduler,
                    "tasks": f"{part[0] + 1} to {part[-1] + 1}",
                    "energy_j": chosen["energy_j"].mean(),
                    "latency_s": chosen["latency_s"].mean(),
                    "violations": violated(chosen).mean(),
                }
            )
    return pd.DataFrame(parts)


def violated(table: pd.DataFrame) -> pd.Series:
    """Whether each task was above the limit, or failed."""
    return (table["latency_s"] > table["limit_s"]) | (table["failed"] != "")


def claims(table: pd.DataFrame, overhead: float) -> pd.DataFrame:
    """Rows for the claims: what learning brought, and what it cost.

    Parameters
    ----------
    table
        Of ``read_recorded``, with both schedulers.
    overhead
        Of ask, tell and journal, as a share of a task of 100 ms.
    """
    learned, fixed = (table[table["scheduler"] == name] for name in (ADAPTIVE, FIXED))
    late = learned[learned["task"] > len(learned) // 2]
    rng = np.random.default_rng(0)

    def means(energies: pd.Series) -> np.ndarray:
        values = energies.dropna().to_numpy()
        return rng.choice(values, (2000, len(values))).mean(axis=1)

    ratio = means(late["energy_j"]) / means(fixed["energy_j"])
    low, high = np.quantile(ratio, [0.025, 0.975])
    share = violated(learned).to_numpy(dtype=float)
    violations, below, above = interval(share)
    rows = [
        (
            "energy over the fixed arm's, second half",
            late["energy_j"].mean() / fixed["energy_j"].mean(),
            *(low, high, len(late), "estimated"),
        ),
        ("violations, closed loop", violations, below, above, len(share), "measured"),
        ("deciding, share of 100 ms", overhead, None, None, None, "measured"),
    ]
    return pd.DataFrame(rows, columns=["key", "value", "low", "high", "n", "evidence"])


def learning(table: pd.DataFrame, limit_s: float, evidence: str, energy_evidence: str) -> Figure:
    """Energy and latency of every task, with moving medians; colours are schedulers."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    _series(table, "energy_j", top)
    _series(table, "latency_s", bottom)
    bottom.axhline(limit_s, color="black", linestyle=":", linewidth=1)
    bottom.annotate("limit", (1, limit_s), xytext=(2, 3), textcoords="offset points", fontsize=9)
    top.set(ylabel="energy per task, J", ylim=(0, None))
    bottom.set(ylabel="latency of encoding, s", ylim=(0, None), xlabel="task")
    titled(top, "A closed loop on this machine", energy_evidence)
    titled(bottom, "The same tasks", evidence)
    sns.despine(figure)
    return figure


def _series(table: pd.DataFrame, column: str, ax: Axes) -> None:
    """Points, the moving median, and the scheduler's name at the end of its line."""
    top = table[column].quantile(0.995) * 1.15
    for scheduler, rows in table.groupby("scheduler", sort=False):
        at = rows["task"] * (table["task"].max() / rows["task"].max())  # asked meanwhile
        colour = scheduler_colour(str(scheduler))
        ax.plot(at, rows[column], ".", markersize=2, alpha=0.3, color=colour)
        middle = rows[column].rolling(WINDOW, min_periods=1).median()
        ax.plot(at, middle, color=colour, linewidth=1.5)
        ax.annotate(
            str(scheduler),
            (at.iloc[-1], middle.iloc[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
        )
    ax.set_ylim(0, top)
