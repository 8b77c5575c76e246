"""Figures of ``stability``: performance over settings, and where schedulers end."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from mllm_sched.study.landscape import arm_table, pareto_front
from mllm_sched.study.plots import (
    COMPONENT_COLOURS,
    OURS,
    PENALTY,
    dashes,
    scheduler_colour,
    titled,
)
from mllm_sched.study.stability import Case, Stability
from mllm_sched.tasks import Task

PANELS = {
    "energy_over_oracle": "energy over the oracle's",
    "violations": "tasks beyond the limit",
    "latency_s": "mean latency, s",
}
NEAR = (6.0, 1.8)  # shown around the front: times the least latency, times the least energy
SHOWN_TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50)


def over_cases(
    played: Stability, *, xlabel: str, title: str, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Energy, violations and latency over the cases, one line a scheduler with its interval.

    Rules with a penalty are left out: where they differ at all, the tables say so.
    """
    if axes is None:
        axes = plt.subplots(1, 3, figsize=(13.5, 4.2))[1]
    labels = [case.label for case in played.cases]
    for ax, (quantity, ylabel) in zip(axes, PANELS.items(), strict=True):
        rows = played.summary[played.summary["quantity"] == quantity]
        for name, line in rows.groupby("scheduler", observed=True, sort=False):
            if PENALTY not in str(name):
                _line(ax, str(name), line.set_index("case").loc[labels])
        ax.set(xlabel=xlabel, ylabel=ylabel)
        short = [label.removesuffix(" s") for label in labels]  # the unit stands with the axis
        ax.set_xticks(range(len(labels)), short, rotation=60 if len(labels) > 6 else 0)
    _scale(axes, len(labels))
    for ax, name in zip(axes, ("energy", "violations", "latency"), strict=True):
        titled(ax, f"{title}: {name}", played.evidence)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axes


def _line(ax: Axes, label: str, line: pd.DataFrame) -> None:
    colour, ours = scheduler_colour(label), label == OURS
    places = np.arange(len(line))
    (drawn,) = ax.plot(places, line["value"], dashes(label), color=colour, label=label)
    drawn.set(marker="o", markersize=5, linewidth=2.6 if ours else 1.5, zorder=3 if ours else 2)
    ax.fill_between(places, line["low"], line["high"], color=colour, alpha=0.18, lw=0)


def _scale(axes: Sequence[Axes], cases: int) -> None:
    energy, share, latency = axes
    energy.set_yscale("log")
    energy.yaxis.set_major_locator(FixedLocator(SHOWN_TICKS))
    energy.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    energy.yaxis.set_minor_locator(NullLocator())
    share.set_yscale("symlog", linthresh=0.01)
    share.set_ylim(-0.001, 1.2)
    share.yaxis.set_major_formatter(PercentFormatter(1.0))
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    for ax in axes:
        ax.set_xlim(-0.3, cases - 0.7)


def ends_on_front(
    played: Stability,
    shown: Sequence[Case],
    task: Task,
    schedulers: Sequence[str],
    *,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """The arms of the board, their Pareto front, and where schedulers ended, one panel a case.

    Only the neighbourhood of the front is shown; all arms of the CPU lie far outside, above and to
    the right. Arms beyond the panel's limit are pale. A scheduler's point is its mean over the last
    tenth of its runs, so it may lie between arms.
    """
    if axes is None:
        size = 4.4 * len(shown), 4.4
        axes = list(plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)[1][0])
    for ax, case in zip(axes, shown, strict=True):
        _arms(ax, case, task)
        here = played.ends[played.ends["case"] == case.label]
        means = here.groupby("scheduler", observed=True)[["latency_s", "energy_j"]].mean()
        for number, name in enumerate(schedulers):
            ring = 15 - 3 * number  # points on the same arm stay visible as rings
            ax.plot(
                *means.loc[name],
                "s" if PENALTY in name else "o",
                ms=ring,
                mfc="none",
                mew=2.2,
                color=scheduler_colour(name),
                label=name,
                zorder=4,
            )
        titled(ax, f"Limit {case.label}", played.evidence)
    handles, _ = axes[-1].get_legend_handles_labels()
    handles += [
        Line2D([], [], marker="o", ls="", color=colour, label=name.upper())
        for name, colour in COMPONENT_COLOURS.items()
        if name != "cpu"
    ]
    axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return axes


def _arms(ax: Axes, case: Case, task: Task) -> None:
    board = arm_table(case.open(), task)
    for component, colour in COMPONENT_COLOURS.items():
        mine = board[board["component"] == component]
        for shown, alpha in ((mine, 0.2), (mine[mine["latency_s"] <= case.limit_s], 0.9)):
            ax.plot(shown["latency_s"], shown["energy_j"], "o", ms=5, alpha=alpha, color=colour)
    front = board[pareto_front(board)].sort_values("latency_s")
    ax.plot(front["latency_s"], front["energy_j"], "-", color="0.3", lw=1.2, label="front")
    ax.axvline(case.limit_s, color="0.3", ls=(0, (1, 2)), lw=1.2)
    ax.set(xscale="log", yscale="log", xlabel="latency, s", ylabel="energy, J")
    quickest, cheapest = board["latency_s"].min(), board["energy_j"].min()
    ax.set_xlim(0.9 * quickest, NEAR[0] * quickest)
    ax.set_ylim(0.97 * cheapest, NEAR[1] * cheapest)
    for axis, ticks in ((ax.xaxis, (0.06, 0.1, 0.2, 0.3)), (ax.yaxis, (2, 2.5, 3))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    ax.label_outer()
