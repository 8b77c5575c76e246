"""Figures of a board: what its arms cost, how well a model meets measurements.

As in ``plots.py``, a plot takes a table and optional axes, returns them, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mllm_sched.arms import power_name
from mllm_sched.study.plots import COMPONENT_COLOURS, OURS, SCHEDULER_COLOURS, titled


def task_by_task(
    table: pd.DataFrame,
    limit_s: float,
    *,
    evidence: str,
    energy_evidence: str = "",
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Latency with its limit, and energy, of every task of one run; two axes."""
    axes = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True)[1] if axes is None else axes
    for ax, column, unit in [
        (axes[0], "latency_s", "latency, s"),
        (axes[1], "energy_j", "energy, J"),
    ]:
        ax.plot(table["step"], table[column], ".", color=SCHEDULER_COLOURS[OURS])
        ax.set(ylabel=unit, ylim=(0, 1.15 * max(table[column].max(), limit_s * (column[0] == "l"))))
    axes[0].axhline(limit_s, color="0.3", ls="--", lw=1)
    axes[0].text(table["step"].max(), limit_s, "limit", ha="right", va="bottom", color="0.3")
    axes[1].set_xlabel("task")
    titled(axes[0], "Latency of every task", evidence)
    titled(axes[1], "Energy of every task", energy_evidence or evidence)
    return axes


def landscape(
    table: pd.DataFrame,
    quantity: str,
    *,
    title: str,
    ylabel: str,
    evidence: str,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """A quantity over power levels, one panel a component, one line a load."""
    components = list(dict.fromkeys(table["component"]))
    if axes is None:
        axes = plt.subplots(1, len(components), figsize=(9.5, 3.4))[1]
    loads = sorted(table["load"].unique())
    for ax, component in zip(axes, components, strict=True):
        shades = sns.light_palette(COMPONENT_COLOURS[component], len(loads) + 2)[2:]
        for shade, load in zip(shades, loads, strict=True):
            part = table[(table["component"] == component) & (table["load"] == load)]
            levels = [power_name(watts) for watts in part["power_w"]]
            ax.plot(levels, part[quantity], "o-", color=shade, ms=4, label=f"{load:.0%}")
        ax.set(yscale="log", xlabel="power level", ylabel=ylabel if ax is axes[0] else "")
        ax.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.set_title(component.upper())
    axes[-1].legend(title="load", fontsize="small", bbox_to_anchor=(1.0, 0.5), loc="center left")
    axes[0].figure.suptitle(f"{title} ({evidence})")
    return axes


def parity(predictions: pd.DataFrame, quantity: str, *, title: str, ax: Axes | None = None) -> Axes:
    """Published against predicted values; filled points were held out of the fit.

    Parameters
    ----------
    predictions
        Of ``calibration.predictions``.
    """
    ax = ax or plt.subplots(figsize=(4.6, 4.4))[1]
    table = predictions[predictions["quantity"] == quantity]
    ends = np.array([table["published"].min() * 0.8, table["published"].max() * 1.25])
    ax.plot(ends, ends, color="0.3", lw=1)
    ax.fill_between(ends, ends * 0.9, ends * 1.1, color="0.85", lw=0, label="within 10 %")
    markers = ["o", "s", "^", "D"]
    for marker, (source, rows) in zip(markers, table.groupby("source", sort=False), strict=False):
        seen = rows[~rows["held_out"]]
        unseen = rows[rows["held_out"]]
        ax.plot(seen["published"], seen["predicted"], marker, mfc="white", mec="0.4", ms=5)
        ax.plot(
            unseen["published"],
            unseen["predicted"],
            marker,
            color="#0173b2",
            ms=6,
            label=f"{source}, held out",
        )
    ax.plot([], [], "o", mfc="white", mec="0.4", label="used for the fit")
    ax.set(xscale="log", yscale="log", xlabel="published", ylabel="model", xlim=ends, ylim=ends)
    ax.legend(fontsize="x-small")
    return titled(ax, title, "published, model simulated")


def error_over_arms(errors: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Error of predictors over how many arms were profiled, with the spread over draws."""
    ax = ax or plt.subplots(figsize=(7, 3.8))[1]
    sns.lineplot(
        errors,
        x="arms_profiled",
        y="error",
        hue="predictor",
        style="predictor",
        markers=True,
        dashes=False,
        errorbar=("pi", 80),
        palette="dark",
        ax=ax,
    )
    ax.set(yscale="log", xlabel="arms profiled", ylabel="median error on the others")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.legend(title="")
    return titled(ax, "Predicting arms that were never run", evidence)
