"""What a running agent learned, task by task: from its journal, now or as it was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from mllm_sched import paths
from mllm_sched.experiments.plots import scheduler_colour, titled

RECORDED = paths.DATA / "closed_loop"
ADAPTIVE, FULL, INT8 = "Adaptive safe GP", "Fixed, float32", "Fixed, int8"
NUMBER = ("value", "low", "high", "n")
BLOCK, DRAWS = 10, 2000  # tasks that are drawn together, and how often
WINDOW = 25  # tasks of a moving median
APART = 0.07  # of the height of a figure: names are at least so far from each other
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


def claims(table: pd.DataFrame, deciding: Mapping[str, float]) -> pd.DataFrame:
    """Rows for the claims: what learning brought in the second half, and what it cost.

    Parameters
    ----------
    table
        Of ``read_recorded``, with all schedulers.
    deciding
        Time of ask, tell and journal as a share of a task of 100 ms: ``value``, ``low``, ``high``
        and ``n``.

    Returns
    -------
    Columns ``key``, ``value``, ``low``, ``high``, ``n``, ``evidence``. Energies follow each other
    and are drawn in blocks for their intervals; shares of tasks have Wilson's.
    """
    late = {
        name: rows[rows["task"] > len(rows) // 2]["energy_j"].dropna().to_numpy()
        for name, rows in table.groupby("scheduler")
    }
    better = min((FULL, INT8), key=lambda name: late[name].mean())
    learned = table[table["scheduler"] == ADAPTIVE]
    count, beyond = len(learned), int(violated(learned).sum())
    wilson = proportion(beyond, count)
    energy, latency = learned["energy_evidence"].iloc[0], learned["evidence"].iloc[0]
    rows = [
        ("energy over full precision on all cores", *_ratio(late[ADAPTIVE], late[FULL]), energy),
        ("energy over the better trusted arm", *_ratio(late[ADAPTIVE], late[better]), energy),
        ("violations, closed loop", beyond / count, *wilson, count, latency),
        ("deciding, share of 100 ms", *(deciding[name] for name in NUMBER), "measured"),
    ]
    return pd.DataFrame(rows, columns=["key", *NUMBER, "evidence"])


def _ratio(
    ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> tuple[float, float, float, int]:
    """Ratio of two means, with its 95 % interval and how many of ours there are."""
    rng = np.random.default_rng(0)
    drawn = block_means(ours, rng) / block_means(theirs, rng)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(ours.mean() / theirs.mean()), float(low), float(high), len(ours)


def block_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of a moving-block bootstrap (Kuensch 1989): what follows each other stays together."""
    length = min(BLOCK, len(values))
    starts = rng.integers(len(values) - length + 1, size=(DRAWS, -(-len(values) // length)))
    places = (starts[..., None] + np.arange(length)).reshape(DRAWS, -1)[:, : len(values)]
    return np.asarray(values[places].mean(axis=1))


def proportion(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (JASA 1927).

    Examples
    --------
    >>> low, high = proportion(0, 1000)
    >>> low == 0 and 0.003 < high < 0.004
    True
    """
    found = binomtest(count, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def learning(table: pd.DataFrame, limit_s: float, evidence: str, energy_evidence: str) -> Figure:
    """Energy and latency of every task, with moving medians; colours are schedulers."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    _series(table, "energy_j", top)
    _series(table, "latency_s", bottom)
    bottom.axhline(limit_s, color="black", linestyle=":", linewidth=1)
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "fontsize": 9}
    bottom.annotate("limit", (table["task"].max(), limit_s), **place)
    highest_s = max(bottom.get_ylim()[1], 1.15 * limit_s)  # however far below it all tasks are
    top.set(ylabel="energy per task, J", ylim=(0, None))
    bottom.set(ylabel="latency of encoding, s", ylim=(0, highest_s), xlabel="task")
    titled(top, "A closed loop on this machine", energy_evidence)
    titled(bottom, "The same tasks", evidence)
    sns.despine(figure)
    return figure


def as_it_learns(journal: pd.DataFrame, limit_s: float) -> Figure:
    """The same for a journal that is being written, of an agent that learns."""
    evidence = {name: journal[name].iloc[0] for name in ("evidence", "energy_evidence")}
    figure = learning(numbered(journal.assign(scheduler=ADAPTIVE)), limit_s, **evidence)
    plt.close(figure)  # it is shown by whoever asked for it
    return figure


def _series(table: pd.DataFrame, column: str, ax: Axes) -> None:
    """Points, the moving median, and the scheduler's name at the end of its line."""
    ax.set_ylim(0, table[column].quantile(0.995) * 1.15)
    ends: dict[str, float] = {}
    for scheduler, rows in table.groupby("scheduler", sort=False):
        at = rows["task"] * (table["task"].max() / rows["task"].max())  # asked meanwhile
        colour = scheduler_colour(str(scheduler))
        ax.plot(at, rows[column], ".", markersize=2, alpha=0.3, color=colour)
        middle = rows[column].rolling(WINDOW, min_periods=1).median()
        line = "--" if scheduler == INT8 else "-"
        ax.plot(at, middle, color=colour, linewidth=1.5, linestyle=line)
        ends[str(scheduler)] = middle.iloc[-1] / ax.get_ylim()[1]
    below = -1.0
    for scheduler, height in sorted(ends.items(), key=lambda end: end[1]):
        below = max(height, below + APART)
        ax.annotate(
            scheduler,
            (1.0, below),
            xycoords="axes fraction",
            color=scheduler_colour(scheduler),
            va="center",
            fontsize=9,
        )
