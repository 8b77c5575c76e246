"""Figures of a board that changes: what every rule does while it does."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, PercentFormatter

from mllm_sched.study import metrics
from mllm_sched.study.aftermath import Aftermath
from mllm_sched.study.plots import dashes, scheduler_colour, titled
from mllm_sched.study.time_varying import Scenario

COLUMNS = 4  # panels in a row; the legend takes the place after the last
CUT = 1.6  # times the oracle's energy, where its axis ends


def over_time(
    played: pd.DataFrame,
    chosen: Sequence[Scenario],
    quantity: str,
    *,
    ylabel: str,
    title: str,
    evidence: str,
) -> Figure:
    """A quantity over the tasks of a run, a panel a scenario; dotted lines mark the change.

    Parameters
    ----------
    played
        Of ``time_varying.play``.
    quantity
        Column of it, averaged over blocks of tasks and over seeds. ``beyond`` is a share; all
        others are multiples of the oracle's, and the axis ends at 1.6.
    """
    rows = len(chosen) // COLUMNS + 1
    steps = int(played["step"].max()) + 1
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(14.5, 3.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, scenario in zip(axes.flat, chosen, strict=False):
        part = played[played["scenario"] == scenario.label].reset_index(drop=True)
        curves = metrics.curves(part, part[quantity].astype(float), points=40)
        for name, line in curves.groupby("scheduler", observed=True, sort=False):
            label = str(name)
            colour, style = scheduler_colour(label), dashes(label)
            on_top = 3 if "safe" in label.lower() else 2
            ax.plot(line["step"], line["value"], style, color=colour, label=label, zorder=on_top)
            ax.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        for mark in scenario.marks(steps):
            ax.axvline(mark, color="0.3", ls=(0, (1, 2)), lw=1.4)
        ax.set(title=scenario.label, xlim=(0, steps))
    if quantity == "beyond":
        axes[0, 0].set_ylim(-0.02, 1.02)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes[0, 0].set_ylim(0.97, CUT)
        axes[0, 0].yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    for place, ax in enumerate(axes.flat):
        last = place + COLUMNS >= len(chosen)
        ax.set(ylabel=ylabel if place % COLUMNS == 0 else "", xlabel="tasks" if last else "")
        ax.tick_params(labelbottom=last)
        if place >= len(chosen):
            ax.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes.flat[len(chosen)].legend(handles, labels, loc="center", frameon=False)
    figure.suptitle(f"{title} ({evidence})", size="large")
    return figure


def who_notices(after: Aftermath, *, evidence: str) -> Figure:
    """Tasks beyond the limit and energy, a cell a rule and scenario; darker is worse."""
    shares, energy = after.wide("violations"), after.wide("energy_over_oracle")
    figure, axes = plt.subplots(1, 2, figsize=(15, 1.6 + 0.42 * len(shares)), sharey=True)
    text = (100 * shares).map(lambda share: f"{share:.1f} %")
    shade = np.log10(shares.clip(lower=1e-3))
    options = {"fmt": "", "cmap": "rocket_r", "cbar": False, "linewidths": 1}
    sns.heatmap(shade, annot=text, vmin=-3, vmax=0.3, ax=axes[0], **options)
    text = energy.map(lambda ratio: f"{ratio:.2f}x")
    shade = np.log10((energy - 1.0).clip(lower=1e-2))
    sns.heatmap(shade, annot=text, vmin=-2, vmax=1.5, ax=axes[1], **options)
    for ax in axes:
        ax.set(xlabel="", ylabel="")
        ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=25, ha="right")
    titled(axes[0], "Tasks beyond the limit from the change on", evidence)
    titled(axes[1], "Energy over the oracle's from the change on", evidence)
    return figure
