"""Figures of the decoupled pipeline. A plot takes a table, returns its axes, and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.contour import ContourSet
from matplotlib.ticker import FuncFormatter, PercentFormatter

from mllm_sched.study.eavesdropper import Seen
from mllm_sched.study.plots import titled

# Stages of a request; not the hues of schedulers or components.
STAGE_COLOURS = {"transmission": "#7f7f7f", "encode": "#e6ab02", "llm": "#6a51a3"}
STAGE_NAMES = {"transmission": "transmission", "encode": "encoding", "llm": "LLM"}
HOLDS = 0.53  # four fifths of the saving that the paper claims
FORMS_SHOWN = {
    "image": ("raw RGB", "JPEG, quality 95", "JPEG, quality 75"),
    "audio": ("PCM, 16 bit", "FLAC", "Opus, 24 kbit/s"),
    "video": ("raw RGB, frames seen", "JPEG, frames seen", "H.264, 4 Mbit/s"),
}


def strategies(tables: Mapping[str, tuple[pd.DataFrame, str]]) -> np.ndarray:
    """Where the time of each strategy goes, one panel a table.

    Parameters
    ----------
    tables
        Title to a table with ``strategy`` and the stages in milliseconds, and its evidence.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(13.5, 3.4))
    for ax, (title, (table, evidence)) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        _stages(table, ax)
        titled(ax, title, evidence)
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return np.atleast_1d(axes)


def _stages(table: pd.DataFrame, ax: Axes) -> None:
    left = np.zeros(len(table))
    places = range(len(table))
    for stage, colour in STAGE_COLOURS.items():
        width = table[f"{stage}_ms"].to_numpy() / 1000
        ax.barh(places, width, left=left, color=colour, label=STAGE_NAMES[stage], height=0.65)
        left += width
    for place, total_s in zip(places, table["total_ms"] / 1000, strict=True):
        ax.text(total_s, place, f" {total_s:.2f}", va="center", size="small")
    ax.set_yticks(list(places), table["strategy"])
    ax.invert_yaxis()
    ax.set(xlabel="s", xlim=(0, 1.12 * float(table["total_ms"].max()) / 1000))
    ax.grid(visible=False, axis="y")


def two_effects(steps: Mapping[str, tuple[pd.DataFrame, str]], ax: Axes | None = None) -> Axes:
    """What is left of All Remote's time after each effect, as a share of it.

    Parameters
    ----------
    steps
        Name to a table of ``effects``, and its evidence.
    """
    ax = ax or plt.subplots(figsize=(8.5, 3.4))[1]
    shades = ["0.75", "#9ecae1", "#2171b5"]
    height = 0.26
    for row, (table, _) in enumerate(steps.values()):
        shares = table["total_ms"] / table["total_ms"].iloc[0]
        for place, (step, share) in enumerate(zip(table["step"], shares, strict=True)):
            y = row + (place - 1) * height
            label = step if row == 0 else None
            ax.barh(y, share, height=0.9 * height, color=shades[place], label=label)
            milliseconds = table["total_ms"].iloc[place]
            ax.text(share, y, f" {share:.0%}, {milliseconds:.0f} ms", va="center", size="x-small")
    names = [f"{name}\n({evidence})" for name, (_, evidence) in steps.items()]
    ax.set_yticks(range(len(steps)), names)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(xlabel="share of All Remote's time", xlim=(0, 1.25))
    ax.grid(visible=False, axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    ax.set_title("Two effects, one after the other")
    return ax


def gain_maps(gains: pd.DataFrame, evidence: str) -> np.ndarray:
    """How many times smaller features are than inputs: blue where they win, red where they lose.

    Parameters
    ----------
    gains
        Of ``break_even.gains``.
    """
    shown = gains[gains.index.get_level_values("wire").isin(["float16", "int8"])]
    counts = [len(shown.xs(item)) for item in FORMS_SHOWN]
    figure, axes = plt.subplots(
        1, 3, figsize=(14.5, 5.6), gridspec_kw={"width_ratios": [1, 1, 1]}, squeeze=True
    )
    norm = TwoSlopeNorm(0, -2, 2)
    for ax, (item, forms), _ in zip(axes, FORMS_SHOWN.items(), counts, strict=True):
        table = shown.xs(item)[list(forms)]
        names = [f"{model}, {_short(cut)}{wire}" for model, cut, wire in table.index]
        sns.heatmap(
            np.log10(table.to_numpy()),
            annot=[[_times(value) for value in row] for row in table.to_numpy()],
            fmt="",
            cmap="RdBu",
            norm=norm,
            cbar=False,
            linewidths=0.5,
            ax=ax,
            yticklabels=names,
            xticklabels=[form.replace(", ", ",\n") for form in forms],
        )
        ax.tick_params(axis="x", rotation=0, labelsize="small")
        ax.tick_params(axis="y", labelsize="small")
        titled(ax, item, evidence)
    figure.suptitle("Input bytes over feature bytes: above 1 features are smaller", size="medium")
    return axes


def _short(cut: str) -> str:
    return {"before projector": "before, ", "after projector": "after, ", "pooled": ""}[cut]


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def claim_regions(
    panels: Mapping[str, tuple[pd.DataFrame, Mapping[str, float]]], evidence: str
) -> np.ndarray:
    """What hybrid saves over link rate and gain; the line bounds where the paper's claim holds.

    Parameters
    ----------
    panels
        Title to a table of ``strategy_costs.region``, and to the gains of real features by name.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(12.5, 4.4), sharey=True, squeeze=False)
    for ax, (title, (table, marks)) in zip(axes[0], panels.items(), strict=True):
        image = _region(table, marks, ax)
        titled(ax, title, evidence)
    axes[0][0].set_ylabel("input bytes over feature bytes")
    bar = figure.colorbar(image, ax=axes[0], format=PercentFormatter(1.0), shrink=0.9)
    bar.set_label("time saved by hybrid")
    return axes[0]


def _region(table: pd.DataFrame, marks: Mapping[str, float], ax: Axes) -> ContourSet:
    grid = table.pivot(index="gain", columns="mbit_s", values="saving")
    rates, gains, saving = grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy()
    levels = np.linspace(-1, 1, 21)
    image = ax.contourf(rates, gains, saving.clip(-1, 1), levels=levels, cmap="RdBu")
    ax.contour(rates, gains, saving, levels=[0.0], colors="0.4", linewidths=1.0, linestyles="--")
    if saving.max() > HOLDS:
        ax.contour(rates, gains, saving, levels=[HOLDS], colors="black", linewidths=1.8)
        row, column = np.unravel_index(saving.argmax(), saving.shape)
        place = (rates[column], gains[int(0.9 * row)])
        ax.text(*place, "paper's\nclaim holds", ha="center", va="top", color="white", size="small")
    for name, gain in marks.items():
        ax.axhline(gain, color="black", lw=0.9, ls=(0, (1, 2)))
        ax.text(rates[-1], gain * 1.06, f"{name} ", ha="right", size="x-small")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.set(xscale="log", yscale="log", xlabel="link rate, Mbit/s")
    ax.xaxis.set_major_formatter(plain)
    ax.yaxis.set_major_formatter(plain)
    ax.grid(visible=False)
    return image


def residual(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A short request right behind a missed deadline, over link rates. Of ``residual_queue``."""
    ax = ax or plt.subplots(figsize=(6.5, 3.2))[1]
    lines = {
        "same_s": ("same connection", "#b2182b", "o-"),
        "new_s": ("another connection", "#2166ac", "s-"),
        "idle_s": ("idle link", "0.5", "^--"),
    }
    for column, (name, colour, style) in lines.items():
        ax.plot(table["mbit_s"], table[column], style, color=colour, label=name)
    ax.set(xscale="log", yscale="log", xlabel="link rate, Mbit/s", ylabel="answer after, s")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    ax.set_xticks(table["mbit_s"])
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return titled(ax, "A short request behind a missed deadline", "measured")


def eavesdropper(seen: Sequence[Seen]) -> np.ndarray:
    """The photograph as it was read off the link, in every form."""
    _, axes = plt.subplots(1, len(seen), figsize=(12, 3.2))
    for ax, each in zip(axes, seen, strict=True):
        ax.imshow(each.image)
        ax.set_axis_off()
        ax.set_title(f"{each.what}\ncorrelation {each.correlation:.2f} (measured)")
    return axes
