"""Figures of rules on random tables: the frontier of all, and what each part brings."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mllm_sched.study.plots import scheduler_colour, titled

CASES = {False: ("as it is", "#0173b2"), True: ("with drift", "#d55e00")}
LEAST = 5e-5  # violations below this share are drawn at the edge


def frontier_of_rules(summary: pd.DataFrame, *, evidence: str) -> Figure:
    """Energy against violations of every rule; without and with drift, side by side.

    Parameters
    ----------
    summary
        Of ``table_runs.summary`` by ``drift`` and ``scheduler``.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.6), sharey=True)
    for ax, (drift, group) in zip(axes, summary.groupby("drift"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="tasks on an arm beyond the limit")
        best = _undominated(group)
        for row, ahead in zip(group.itertuples(), best, strict=True):
            at = max(row.violations, LEAST)
            colour = scheduler_colour(row.scheduler)
            ax.plot(at, row.energy, "o", ms=8 if ahead else 5, color=colour)
            ax.annotate(
                row.scheduler,
                (at, row.energy),
                xytext=(5, 3),
                textcoords="offset points",
                size=8,
                color=colour,
                weight="bold" if ahead else "normal",
            )
        line = group[best].sort_values("violations")
        ax.step(line["violations"].clip(lower=LEAST), line["energy"], where="post", color="0.7")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlim(LEAST / 1.5, 3.0)
        titled(ax, "All rules, " + CASES[bool(drift)][0], evidence)
    ticks = (1.02, 1.05, 1.1, 1.2, 1.5, 2, 3)
    axes[0].set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes[0].set_ylabel("energy over the oracle's, mean")
    for ax in axes:
        ax.minorticks_off()
    return figure


def ablation(summary: pd.DataFrame, *, title: str, evidence: str) -> Figure:
    """Energy and violations of every variant, as it is and with drift, with 95 % intervals.

    Parameters
    ----------
    summary
        Of ``table_runs.summary`` by ``label`` and ``drift``.
    """
    labels = list(dict.fromkeys(summary["label"]))
    height = 1.3 + 0.32 * len(labels)
    figure, axes = plt.subplots(1, 2, figsize=(10, height), sharey=True)
    for drift, (name, colour) in CASES.items():
        rows = summary[summary["drift"] == drift].set_index("label").loc[labels]
        places = np.arange(len(labels)) + (0.13 if drift else -0.13)
        for ax, quantity in zip(axes, ("energy", "violations"), strict=True):
            _intervals(ax, rows, quantity, places, colour, name)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("energy over the oracle's, mean")
    axes[1].set_xlabel("tasks on an arm beyond the limit")
    axes[1].xaxis.set_major_formatter(PercentFormatter(1.0))
    axes[1].legend(loc="best", fontsize="small")
    figure.suptitle(f"{title} ({evidence})", size="medium")
    return figure


def _intervals(
    ax: Axes, rows: pd.DataFrame, quantity: str, places: np.ndarray, colour: str, name: str
) -> None:
    value = rows[quantity]
    below, above = value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value
    ax.errorbar(value, places, xerr=[below, above], fmt="o", ms=5, color=colour, label=name)


def _undominated(group: pd.DataFrame) -> np.ndarray:
    """Whether no other rule has both less energy and fewer violations."""
    energy, violations = group["energy"].to_numpy(), group["violations"].to_numpy()
    better = (energy[None] < energy[:, None]) & (violations[None] < violations[:, None])
    undominated: np.ndarray = ~better.any(axis=1)
    return undominated
