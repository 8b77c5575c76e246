"""Figures of the decoupled pipeline. A plot takes a table, returns its axes, and runs nothing.

Those of sizes and of the link's rate are in ``link_plots``.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mllm_sched.study.eavesdropper import Seen
from mllm_sched.study.plots import titled
from mllm_sched.study.strategy_tables import Tables

# Stages of a request; not the hues of schedulers or components.
STAGE_COLOURS = {"transmission": "#7f7f7f", "encode": "#e6ab02", "llm": "#6a51a3"}
STAGE_NAMES = {"transmission": "transmission", "encode": "encoding", "llm": "LLM"}


def strategies(tables: Tables) -> np.ndarray:
    """Where the time of each strategy goes, as a share of All Remote's; one panel a table.

    Parameters
    ----------
    tables
        Title to a table with ``strategy`` and the stages in milliseconds, and its evidence.
    """
    figure, axes = _panels(tables, per_panel=0.75, per_row=0.42)
    for ax, (table, _) in zip(axes, tables.values(), strict=True):
        _stages(table, ax)
    axes[-1].set_xlabel("time over All Remote's; seconds stand beside the bars")
    axes[0].set_xlim(0, 1.1 * max(_shares(table).max() for table, _ in tables.values()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return axes


def _panels(tables: Tables, per_panel: float, per_row: float) -> tuple[Figure, np.ndarray]:
    """One panel a table, under each other and as high as it has rows, titled at the left."""
    heights = [len(table) for table, _ in tables.values()]
    figure, axes = plt.subplots(
        len(tables),
        1,
        figsize=(8.5, per_panel * len(tables) + per_row * sum(heights)),
        sharex=True,
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for ax, (title, (_, evidence)) in zip(axes[:, 0], tables.items(), strict=True):
        titled(ax, title, evidence).title.set_horizontalalignment("left")
        ax.title.set_x(0.0)
    return figure, axes[:, 0]


def _shares(table: pd.DataFrame) -> pd.Series:
    rows = table.set_index("strategy")["total_ms"]
    return rows / rows["all-remote"]


def _stages(table: pd.DataFrame, ax: Axes) -> None:
    remote_ms = float(table.set_index("strategy").loc["all-remote", "total_ms"])
    left, places = np.zeros(len(table)), range(len(table))
    for stage, colour in STAGE_COLOURS.items():
        width = table[f"{stage}_ms"].to_numpy() / remote_ms
        ax.barh(places, width, left=left, color=colour, label=STAGE_NAMES[stage], height=0.7)
        left += width
    for place, total_ms in zip(places, table["total_ms"], strict=True):
        name = f" {total_ms / 1000:.2f} s"
        ax.text(total_ms / remote_ms, place, name, va="center", size="small")
    ax.set_yticks(list(places), table["strategy"])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")


def two_effects(steps: Tables) -> np.ndarray:
    """What is left of All Remote's time after each effect, one panel a table.

    Parameters
    ----------
    steps
        Name to a table with ``step`` and ``total_ms``, and its evidence.
    """
    _, axes = _panels(steps, per_panel=0.7, per_row=0.4)
    for ax, (table, _) in zip(axes, steps.values(), strict=True):
        shares = table["total_ms"] / table["total_ms"].iloc[0]
        shades = plt.get_cmap("Blues")(np.linspace(0.3, 0.85, len(table) - 1))
        ax.barh(range(len(table)), shares, color=["0.6", *shades], height=0.7)
        for place, (share, total_ms) in enumerate(zip(shares, table["total_ms"], strict=True)):
            told = f" {share:.2f}, {total_ms / 1000:.2f} s"
            ax.text(share, place, told, va="center", size="small")
        ax.set_yticks(range(len(table)), table["step"])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
    axes[-1].set(xlabel="time over All Remote's", xlim=(0, 1.2))
    return axes


def residual(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A short request right behind a missed deadline, over link rates. Of ``residual_queue``."""
    ax = ax or plt.subplots(figsize=(7, 3.2))[1]
    lines = {
        "same_s": ("same connection", "#b2182b", "o-"),
        "new_s": ("another connection", "#2166ac", "s-"),
        "idle_s": ("idle link", "0.5", "^--"),
    }
    for column, (name, colour, style) in lines.items():
        ax.plot(table["mbit_s"], table[column], style, color=colour, label=name, ms=7)
    ax.set(xscale="log", yscale="log", xlabel="link rate, Mbit/s", ylabel="answer after, s")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.set_xticks(table["mbit_s"].to_list(), minor=False)
    ax.set_xticks([], minor=True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plain)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return titled(ax, "A short request behind a missed deadline", "measured")


def eavesdropper(seen: Sequence[Seen]) -> np.ndarray:
    """The photograph as it was read off the link, in every form, and the controls beside."""
    figure, axes = plt.subplots(1, len(seen), figsize=(3.0 * len(seen), 2.9))
    for ax, each in zip(axes, seen, strict=True):
        ax.imshow(each.image)
        ax.set_axis_off()
        ax.set_title(f"{each.what}\ncorrelation {each.correlation:.2f}")
    figure.suptitle("What a reader of the link sees (measured)", size="medium")
    return axes
