"""Figures of a board that changes: what every rule does while it does."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mllm_sched.study import metrics
from mllm_sched.study.plots import dashes, scheduler_colour, titled
from mllm_sched.study.time_varying import Scenario


def over_time(
    played: pd.DataFrame,
    chosen: Sequence[Scenario],
    quantity: str,
    *,
    ylabel: str,
    title: str,
    evidence: str,
) -> Figure:
    """A quantity over the tasks of a run, a panel a scenario; changes are marked.

    Parameters
    ----------
    played
        Of ``time_varying.play``.
    quantity
        Column of it, averaged over blocks of tasks and over seeds.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.4), sharex=True, sharey=True)
    for ax, scenario in zip(axes.flat, chosen, strict=True):
        part = played[played["scenario"] == scenario.label].reset_index(drop=True)
        curves = metrics.curves(part, part[quantity].astype(float), points=25)
        for name, line in curves.groupby("scheduler", observed=True, sort=False):
            colour, style = scheduler_colour(str(name)), dashes(str(name))
            ax.plot(line["step"], line["value"], style, color=colour, lw=1.6, label=name)
            ax.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        for change in scenario.changes:
            ax.axvline(change, color="0.3", ls=(0, (1, 2)), lw=1.2)
        ax.set_title(scenario.label)
    if quantity == "beyond":
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes[0, 0].set_yscale("log")
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    for ax in axes[-1]:
        ax.set_xlabel("tasks")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{title} ({evidence})", size="large")
    return figure


def who_notices(summary: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Share of tasks beyond the limit from the change on, a cell a rule and scenario.

    Parameters
    ----------
    summary
        Of ``time_varying.summarise``.
    """
    ax = ax or plt.subplots(figsize=(10, 4.2))[1]
    shares = summary[summary["quantity"] == "violations"]
    wide = shares.pivot(index="scheduler", columns="scenario", values="value")
    wide = wide.loc[shares["scheduler"].unique(), shares["scenario"].unique()]
    text = (100 * wide).map(lambda share: f"{share:.2g} %")
    shade = np.log10(wide.clip(lower=1e-3))
    sns.heatmap(shade, annot=text, fmt="", cmap="rocket_r", cbar=False, ax=ax, vmin=-3, vmax=0)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=12)
    return titled(ax, "Tasks beyond the limit from the change on", evidence)
