"""Figures. A plot takes a table and an optional ``ax``, returns the ``ax``, and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mllm_sched.study import metrics

# One palette for schedulers, one for components, throughout. Hues of seaborn's colour-blind set.
SCHEDULER_COLOURS = {
    "Safe GP-UCB": "#0173b2",
    "UCB": "#de8f05",
    "Thompson": "#029e73",
    "Epsilon-greedy": "#cc78bc",
    "Fixed at full power": "#949494",
    "Random": "#ca9161",
    "Oracle": "#000000",
}
COMPONENT_COLOURS = {"gpu": "#d55e00", "cpu": "#56b4e9", "dla": "#117733"}
PENALTY = " + penalty"  # a penalised variant keeps its rule's colour and is dashed


def use_style() -> None:
    """The look of every figure here; SVG files come out the same on every run."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    mpl.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "mllm-sched",
            "svg.fonttype": "none",
        }
    )


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write SVG without a date, so that the same figure is the same file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "mllm-sched", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return path


def titled(ax: Axes, text: str, evidence: str) -> Axes:
    """Set a title that says what its numbers are."""
    ax.set_title(f"{text} ({evidence})")
    return ax


def scheduler_colour(label: str) -> str:
    """Colour of a scheduler; a variant has that of its rule, an unknown one is grey."""
    return SCHEDULER_COLOURS.get(label.split(" + ")[0].split(",")[0], "#666666")


def _dashes(label: str) -> str:
    return "--" if PENALTY in label else ":" if label == "Oracle" else "-"


def over_tasks(
    curves: pd.DataFrame,
    *,
    evidence: str,
    title: str,
    ylabel: str,
    log: bool = False,
    percent: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """A quantity over the tasks of a run, one line a scheduler, labelled at its end.

    Parameters
    ----------
    curves
        Of ``metrics.curves``.
    log, percent
        Scale of the y axis.
    """
    ax = ax or plt.subplots(figsize=(8, 4.2))[1]
    ends = []
    for label, line in curves.groupby("scheduler", observed=True, sort=False):
        colour = scheduler_colour(str(label))
        ax.plot(line["step"], line["value"], _dashes(str(label)), color=colour, lw=1.8)
        ax.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.18, lw=0)
        ends.append((float(line["value"].iloc[-1]), str(label), colour))
    if log:
        ax.set_yscale("log")
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(xlabel="tasks", ylabel=ylabel, xlim=(0, curves["step"].max()))
    _label_ends(ax, ends)
    return titled(ax, title, evidence)


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.062) -> None:
    """Write each label beside the end of its line, pushed apart where they would touch."""
    to_axes = ax.transData + ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    floor = ax.get_ylim()[0]
    places = [
        (float(to_axes.transform((right, max(value, floor)))[1]), label, colour)
        for value, label, colour in ends
    ]
    places.sort()
    heights = [height for height, *_ in places]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    overflow = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1.0 - gap * (len(heights) - 1 - i)) if overflow else heights[i]
    for (true_height, label, colour), height in zip(places, heights, strict=True):
        ax.annotate(
            label,
            xy=(1.0, true_height),
            xytext=(1.025, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            size="small",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
            annotation_clip=False,
        )


def energy(table: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Energy per task over the course of a run; ``table`` of ``run`` or ``sweep``."""
    curves = metrics.curves(table, table["energy_j"])
    names = {"title": "Energy per task", "ylabel": "energy, J"}
    return over_tasks(curves, evidence=evidence, log=True, ax=ax, **names)


def latency(table: pd.DataFrame, limit_s: float, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Latency per task over the course of a run, with its limit."""
    curves = metrics.curves(table, table["latency_s"])
    names = {"title": "Latency per task", "ylabel": "latency, s"}
    ax = over_tasks(curves, evidence=evidence, log=True, ax=ax, **names)
    ax.axhline(limit_s, color="0.3", ls=(0, (1, 2)), lw=1.2)
    ax.text(ax.get_xlim()[1] * 0.99, limit_s * 1.04, "limit", ha="right", color="0.3", size="small")
    return ax


def violations(
    table: pd.DataFrame, limit_s: float, *, evidence: str, ax: Axes | None = None
) -> Axes:
    """Share of tasks so far whose arm is truly beyond the limit."""
    beyond = (table["true_latency_s"] > limit_s).astype(float)
    curves = metrics.curves(table, metrics.running_mean(table, beyond))
    names = {"title": "Tasks beyond the limit so far", "ylabel": "share of tasks"}
    return over_tasks(curves, evidence=evidence, percent=True, ax=ax, **names)


def regret(table: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Regret so far: true energy beyond that of the best arm within the limits."""
    curves = metrics.curves(table, metrics.running_sum(table, metrics.regret(table)))
    names = {"title": "Regret so far", "ylabel": "regret, J"}
    return over_tasks(curves, evidence=evidence, log=True, ax=ax, **names)


def frontier(summary: pd.DataFrame, *, evidence: str, title: str, ax: Axes | None = None) -> Axes:
    """Energy against violations, one point a scheduler with its intervals: lower left is better.

    Parameters
    ----------
    summary
        Of ``metrics.summarise``; quantities ``energy_over_oracle`` and ``violations``.
    """
    ax = ax or plt.subplots(figsize=(7.5, 4.6))[1]
    wide = summary.pivot(index="scheduler", columns="quantity", values=["value", "low", "high"])
    texts: list[tuple[float, float, str, str]] = []
    for label, row in wide.iterrows():
        x, y = row["value", "violations"], row["value", "energy_over_oracle"]
        spread = np.abs(
            [
                [row[bound, q] - row["value", q]]
                for q in ("violations", "energy_over_oracle")
                for bound in ("low", "high")
            ]
        ).reshape(2, 2, 1)
        filled = PENALTY not in str(label)
        colour = scheduler_colour(str(label))
        ax.errorbar(
            x,
            y,
            xerr=spread[0],
            yerr=spread[1],
            fmt="o",
            ms=8,
            color=colour,
            mfc=colour if filled else "white",
            capsize=2,
        )
        texts.append((float(x), float(y), str(label), colour))
    ax.set_xscale("symlog", linthresh=0.01)
    ax.set_yscale("log")
    _label_points(ax, texts)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50) if tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="tasks beyond the latency limit", ylabel="energy over the oracle's")
    return titled(ax, title, evidence)


def _label_points(ax: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Labels right of their points, those at the same place joined on one line each."""
    used: list[tuple[float, float]] = []
    for x, y, label, colour in sorted(points, key=lambda point: (point[0], point[1])):
        at = ax.transData.transform((x, y))
        height = at[1]
        while any(abs(height - other[1]) < 13 and abs(at[0] - other[0]) < 170 for other in used):
            height += 13
        used.append((at[0], height))
        offset = (height - at[1]) * 72 / ax.figure.dpi
        ax.annotate(
            label,
            (x, y),
            xytext=(9, offset),
            textcoords="offset points",
            color=colour,
            va="center",
            size="small",
        )
