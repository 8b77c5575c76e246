"""Figures. A plot takes a table and an optional ``ax``, returns the ``ax``, and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from mllm_sched.experiments.comparison import OURS as OURS
from mllm_sched.experiments.provenance import STEADY

# One palette for schedulers, one for components, throughout. Hues of seaborn's colour-blind set.
SCHEDULER_COLOURS = {
    OURS: "#0173b2",
    "Adaptive safe GP": "#d62728",
    "UCB": "#de8f05",
    "Sliding-window UCB": "#a6761d",
    "Discounted UCB": "#e7298a",
    "EXP3": "#66a61e",
    "Thompson": "#029e73",
    "Epsilon-greedy": "#cc78bc",
    "Fixed at full power": "#949494",
    "Fixed": "#949494",
    "Random": "#ca9161",
    "Oracle": "#000000",
}
COMPONENT_COLOURS = {"gpu": "#d55e00", "cpu": "#56b4e9", "dla": "#117733"}
NEAR = (120, 24)  # points closer than this, in pixels, share a stack of names
PENALTY = " + penalty"  # a penalised variant keeps its rule's colour and is dashed


def use_style() -> None:
    """The look of every figure; SVG files come out the same on every run."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            **STEADY,
        }
    )


def titled(ax: Axes, text: str, evidence: str) -> Axes:
    """Set a title that says what its numbers are."""
    ax.set_title(f"{text} ({evidence})")
    return ax


def side_legend(ax: Axes, handles: list[Any]) -> None:
    """A legend right of the axes."""
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize="small",
    )


def plain_ticks(ax: Axes) -> None:
    """Plain numbers on logarithmic axes, fewer of them where the range is wide."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())


def scheduler_colour(label: str) -> str:
    """Colour of a scheduler; a variant has that of its rule, an unknown one grey."""
    return SCHEDULER_COLOURS.get(label.split(" + ")[0].split(",")[0], "#666666")


def dashes(label: str) -> str:
    """Dashed with a penalty, dotted for the oracle, dash-dotted for a rule that forgets."""
    if label == "Oracle":
        return ":"
    return "--" if PENALTY in label else "-." if "forgets" in label else "-"


PANELS = [
    ("energy_over_oracle", "energy over the oracle's", "energy"),
    ("violations", "tasks beyond the limit", "violations"),
    ("latency_s", "mean latency, s", "latency"),
]


def over_cases(summary: pd.DataFrame, *, xlabel: str, title: str, evidence: str) -> Sequence[Axes]:
    """Energy, violations and latency over the cases, one line a scheduler with its interval.

    ``summary`` is ``comparison.by_case`` of every summary. Schedulers with a penalty are left out.
    """
    axes = plt.subplots(1, 3, figsize=(13.5, 4.2))[1]
    labels = list(summary["case"].unique())
    places = np.arange(len(labels))
    short = [label.removesuffix(" s") for label in labels]  # the unit stands with the axis
    for ax, (quantity, ylabel, name) in zip(axes, PANELS, strict=True):
        rows = summary[summary["quantity"] == quantity]
        for scheduler, line in rows.groupby("scheduler", observed=True, sort=False):
            label = str(scheduler)
            if PENALTY in label:
                continue
            colour, ours = scheduler_colour(label), label == OURS
            looks = {"lw": 2.6 if ours else 1.5, "zorder": 3 if ours else 2}
            ax.plot(
                *(places, line["value"], dashes(label)),
                **(looks | {"marker": "o", "ms": 5, "color": colour, "label": label}),
            )
            ax.fill_between(places, line["low"], line["high"], color=colour, alpha=0.18, lw=0)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.3, len(labels) - 0.7))
        ax.set_xticks(places, short, rotation=60 if len(labels) > 6 else 0)
        titled(ax, f"{title}: {name}", evidence)
    energy, share, latency = axes
    energy.set_yscale("log")
    energy.yaxis.set_major_locator(FixedLocator((1, 1.5, 2, 3, 5, 10, 20, 50)))
    energy.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    energy.yaxis.set_minor_locator(NullLocator())
    share.set_yscale("symlog", linthresh=0.01)
    share.set_ylim(-0.001, 1.2)
    share.yaxis.set_major_formatter(PercentFormatter(1.0))
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    side_legend(latency, latency.get_legend_handles_labels()[0])
    return axes


def frontier(summary: pd.DataFrame, *, evidence: str, title: str, ax: Axes | None = None) -> Axes:
    """Energy against violations of ``metrics.summarise``, one point a scheduler with intervals."""
    ax = ax or plt.subplots(figsize=(7.5, 4.6))[1]
    ax.set_xscale("symlog", linthresh=0.01)
    ax.set_yscale("log")
    parts = summary.set_index(["scheduler", "quantity"])[["value", "low", "high"]]
    points = {}
    for name in map(str, summary["scheduler"].unique()):
        x, y = parts.loc[(name, "violations")], parts.loc[(name, "energy_over_oracle")]
        points[name] = (float(x["value"]), float(y["value"]))
        colour, ring = scheduler_colour(name), name == "Oracle"
        ax.errorbar(
            *points[name],
            xerr=np.abs([[x["low"] - x["value"]], [x["high"] - x["value"]]]),
            yerr=np.abs([[y["low"] - y["value"]], [y["high"] - y["value"]]]),
            fmt="o",
            ms=14 if ring else 8,
            color=colour,
            mfc="none" if ring else "white" if PENALTY in name else colour,
            capsize=2,
        )
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(xlabel="tasks beyond the latency limit", ylabel="energy over the oracle's")
    top = max(y for _, y in points.values())
    all_ticks = (1, 1.5, 2, 3, 5, 10, 20, 50) if top > 1.5 else (1, 1.02, 1.05, 1.1, 1.2, 1.5)
    ticks = [tick for tick in all_ticks if tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    ax.minorticks_off()
    _label_points(ax, points)
    return titled(ax, title, evidence)


def _label_points(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names right of their points; those of points beside each other stand in one stack."""
    # Rounded, so that points which are equal keep their order on every processor.
    place = {label: ax.transData.transform(point).round(6) for label, point in points.items()}
    stacks: list[list[str]] = []
    for label in sorted(place, key=lambda label: tuple(-place[label])):
        beside = [
            stack
            for stack in stacks
            if any((abs(place[other] - place[label]) < NEAR).all() for other in stack)
        ]
        if beside:
            beside[0].append(label)
        else:
            stacks.append([label])
    for stack in stacks:  # anchored at its rightmost point, names in the order of their heights
        names = sorted(stack, key=lambda label: -place[label][1])
        for row, label in enumerate(names):
            ax.annotate(
                label,
                points[stack[0]],
                xytext=(11, 11 * ((len(stack) - 1) / 2 - row)),
                textcoords="offset points",
                color=scheduler_colour(label),
                va="center",
                size="small",
                annotation_clip=False,
            )
