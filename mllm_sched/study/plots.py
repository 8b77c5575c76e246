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
        ax.plot(table["step"], table[column], ".", color=SCHEDULER_COLOURS["Safe GP-UCB"])
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
            levels = [("MAX" if watts == 60 else f"{watts}W") for watts in part["power_w"]]
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
