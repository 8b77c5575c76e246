"""Figures of rules on random tables: the frontier of all, and what each part brings."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mllm_sched.study.plots import scheduler_colour, titled

CASES = {False: ("as it is", "#444444"), True: ("with drift", "#9467bd")}  # no scheduler's colour
LEAST = 5e-5  # violations below this share are drawn at the edge


def frontier_of_rules(summary: pd.DataFrame, *, evidence: str) -> Figure:
    """Energy against violations of every rule; without and with drift, side by side.

    The line joins the rules that no other one beats on both. Numbers are ranks by energy.

    Parameters
    ----------
    summary
        Of ``table_runs.summary`` by ``drift`` and ``scheduler``.
    """
    still = summary[~summary["drift"]].sort_values("energy")
    numbers = {str(name): place for place, name in enumerate(still["scheduler"], start=1)}
    figure, axes = plt.subplots(1, 2, figsize=(14, 6.2), sharey=True)
    for ax, (drift, group) in zip(axes, summary.groupby("drift"), strict=True):
        ax.set(xscale="log", yscale="log", xlim=(LEAST / 1.5, 1.0), ylim=(0.025, 15.0))
        for row in group.sort_values("energy", ascending=False).itertuples():
            at = (max(row.violations, LEAST), row.energy - 1.0)
            ax.plot(*at, "o", ms=15, color=scheduler_colour(row.scheduler), mec="white")
            number = str(numbers[row.scheduler])
            ax.text(*at, number, size=8, color="white", ha="center", va="center", weight="bold")
        line = group[_undominated(group)].sort_values("violations")
        shares = line["violations"].clip(lower=LEAST)
        ax.step(shares, line["energy"] - 1.0, where="post", color="0.7", lw=3, zorder=0)
        ax.xaxis.set_major_formatter(_percent)
        ax.yaxis.set_major_formatter(_percent)
        ax.minorticks_off()
        ax.set_xlabel("tasks on an arm beyond the limit (left edge: none)")
        titled(ax, "All rules, " + CASES[bool(drift)][0], evidence)
    axes[0].set_ylabel("energy beyond the oracle's, mean")
    for name, place in numbers.items():
        where = (1.04, 1.0 - (place - 0.5) / len(numbers))
        entry, colour = f"{place}  {name}", scheduler_colour(name)
        axes[1].text(*where, entry, size=9, color=colour, va="center", transform=axes[1].transAxes)
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
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter(_percent)
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("energy beyond the oracle's, mean")
    axes[1].set_xlabel("tasks on an arm beyond the limit")
    axes[1].xaxis.set_major_formatter(_percent)
    axes[1].legend(loc="best", fontsize="small")
    figure.suptitle(f"{title} ({evidence})", size="medium")
    return figure


def _intervals(
    ax: Axes, rows: pd.DataFrame, quantity: str, places: np.ndarray, colour: str, name: str
) -> None:
    value = rows[quantity]
    below, above = value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value
    value = value - 1.0 if quantity == "energy" else value
    ax.errorbar(value, places, xerr=[below, above], fmt="o", ms=5, color=colour, label=name)


@FuncFormatter
def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def _undominated(group: pd.DataFrame) -> np.ndarray:
    """Whether no other rule is better on one axis and no worse on the other."""
    energy, violations = group["energy"].to_numpy(), group["violations"].to_numpy()
    no_worse = (energy[None] <= energy[:, None]) & (violations[None] <= violations[:, None])
    better = no_worse & (
        (energy[None] < energy[:, None]) | (violations[None] < violations[:, None])
    )
    undominated: np.ndarray = ~better.any(axis=1)
    return undominated
