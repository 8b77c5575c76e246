"""What a running agent learned, task by task: from its journal, now or as it was recorded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from mllm_sched import paths
from mllm_sched.experiments.metrics import NUMBER, violated

RECORDED = paths.DATA / "closed_loop"  # by ``benchmarks/closed_loop.py``
ADAPTIVE, FULL, INT8 = "Adaptive safe GP", "Fixed, float32", "Fixed, int8"
BLOCK, DRAWS = 10, 2000  # tasks that are drawn together, and how often


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``read_journal``, by ``scheduler``, with ``task`` (from 1) and ``arm`` (its name)."""
    numbers = table.groupby("scheduler").cumcount() + 1
    arms = table["precision"].astype(str) + ", " + table["threads"].astype(str)
    return table.assign(task=numbers, arm=arms, failed=table["failed"].fillna(""))


def summary(table: pd.DataFrame, blocks: int = 5) -> pd.DataFrame:
    """Mean energy and latency of a task, and violations, by scheduler and equal part of the run."""
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
                    "violations": violated(chosen, chosen["limit_s"]).mean(),
                }
            )
    return pd.DataFrame(parts)


def claims(table: pd.DataFrame, deciding: Mapping[str, float]) -> pd.DataFrame:
    """Rows for the claims: what learning brought in the second half, and what it cost.

    ``table`` is of ``numbered``, with all schedulers. ``deciding`` is the time of ask, tell and
    journal as a share of a task of 100 ms: ``value``, ``low``, ``high`` and ``n``.

    Columns ``key``, ``value``, ``low``, ``high``, ``n``, ``evidence``. Energies follow each other
    and are resampled in blocks for their intervals; shares of tasks have Wilson's (JASA 1927).
    """
    late = {
        name: rows[rows["task"] > len(rows) // 2]["energy_j"].dropna().to_numpy()
        for name, rows in table.groupby("scheduler")
    }
    better = min((FULL, INT8), key=lambda name: late[name].mean())
    learned = table[table["scheduler"] == ADAPTIVE]
    count, beyond = len(learned), int(violated(learned, learned["limit_s"]).sum())
    wilson = binomtest(beyond, count).proportion_ci(method="wilson")
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
    """Means of a moving-block bootstrap (Kuensch 1989), for values that follow each other."""
    length = min(BLOCK, len(values))
    starts = rng.integers(len(values) - length + 1, size=(DRAWS, -(-len(values) // length)))
    places = (starts[..., None] + np.arange(length)).reshape(DRAWS, -1)[:, : len(values)]
    return np.asarray(values[places].mean(axis=1))
