"""Figures of sizes and of the link's rate: where features win, and where the claim holds."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.contour import ContourSet
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mllm_sched.study.input_sizes import RESIZED
from mllm_sched.study.plots import titled
from mllm_sched.study.strategy_sensitivity import HOLDS

# Cells of the map of gains: forms of the input, and features as (model, cut, wire). Each model
# stands with the pipeline's default, and with the cut and type that are smallest.
FORMS_SHOWN = {
    "image": {
        "raw RGB": "raw,\n1080p",
        RESIZED: "raw,\n336 x 336",
        "JPEG, quality 95": "JPEG,\nquality 95",
        "JPEG, quality 75": "JPEG,\nquality 75",
    },
    "audio": {"PCM, 16 bit": "raw PCM", "FLAC": "FLAC", "Opus, 24 kbit/s": "Opus"},
    "video": {
        "raw RGB, frames seen": "raw,\nframes seen",
        "JPEG, frames seen": "JPEG,\nframes seen",
        "H.264, 4 Mbit/s": "H.264",
    },
}
FEATURES_SHOWN = {
    "image": (
        ("LLaVA-1.5", "after projector", "float16"),
        ("LLaVA-1.5", "before projector", "int8"),
        ("Qwen2.5-VL", "after projector", "float16"),
        ("Qwen2.5-VL", "after projector", "int8"),
        ("BLIP-2", "pooled", "int8"),
    ),
    "audio": (
        ("Voxtral", "after projector", "float16"),
        ("Voxtral", "after projector", "int8"),
        ("Qwen2.5-Omni", "after projector", "float16"),
        ("Qwen2.5-Omni", "before projector", "int8"),
    ),
    "video": (
        ("Qwen2.5-VL", "after projector", "float16"),
        ("Qwen2.5-VL", "after projector", "int8"),
    ),
}
SHORT = {"before projector": "before, ", "after projector": "behind, ", "pooled": "pooled, "}
FORM_COLOURS = ("#0173b2", "#de8f05", "#949494")
WIRE_DASHES = {"float16": "-", "int8": "--"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def gain_maps(gains: pd.DataFrame) -> np.ndarray:
    """How many times smaller features are than inputs: blue where they win, red where they lose.

    Parameters
    ----------
    gains
        Of ``break_even.gains``.
    """
    most = max(map(len, FEATURES_SHOWN.values()))
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 4.2), width_ratios=[len(forms) for forms in FORMS_SHOWN.values()]
    )
    for ax, (item, forms) in zip(axes, FORMS_SHOWN.items(), strict=True):
        table = gains.xs(item).loc[list(FEATURES_SHOWN[item]), list(forms)]
        values = table.to_numpy()
        sns.heatmap(
            np.log10(values),
            annot=[[_times(value) for value in row] for row in values],
            annot_kws={"size": "large"},
            fmt="",
            cmap="RdBu",
            norm=TwoSlopeNorm(0, -2, 2),
            cbar=False,
            linewidths=1.5,
            ax=ax,
            yticklabels=[f"{model}\n{SHORT[cut]}{wire}" for model, cut, wire in table.index],
            xticklabels=list(forms.values()),
        )
        ax.set(ylim=(most, 0), ylabel="", xlabel="", facecolor="white")
        ax.xaxis.set_ticks_position("top")
        ax.tick_params(rotation=0, labelsize="small", length=0)
        ax.grid(visible=False)
        ax.text(0, -0.85, item, weight="bold", ha="left")
    figure.suptitle(
        "Input bytes over feature bytes (inputs measured, features counted): above 1 features are "
        "smaller\nbefore, behind: the side of the projector on which the model is cut",
        size="medium",
    )
    return axes


def _times(value: float) -> str:
    """To two digits, but never rounded up to an even match."""
    if np.isnan(value):
        return "\N{EN DASH}"
    if 0.99 < value < 1:
        return f"{value:.3f}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def rate_curves(curves: pd.DataFrame, evidence: str) -> np.ndarray:
    """Features against their input over link rates, one panel an item; a mark at each break-even.

    Parameters
    ----------
    curves
        Of ``link_rates.curves``.
    """
    items = list(dict.fromkeys(curves["item"]))
    figure, axes = plt.subplots(1, len(items), figsize=(13.5, 4.6), sharey=True)
    for ax, item in zip(axes, items, strict=True):
        shown = curves[curves["item"] == item]
        forms = list(dict.fromkeys(shown["form"]))
        colours = FORM_COLOURS if len(forms) == 3 else (FORM_COLOURS[0], FORM_COLOURS[2])
        ax.axhspan(1e-3, 1, color="#2166ac", alpha=0.08, lw=0)
        ax.axhline(1, color="0.3", lw=1)
        for form, colour in zip(forms, colours, strict=True):
            for wire, dashes in WIRE_DASHES.items():
                line = shown[(shown["form"] == form) & (shown["wire"] == wire)]
                ax.plot(line["mbit_s"], line["ratio"], dashes, color=colour, lw=2)
                _mark(line, ax, colour)
        ax.set(xscale="log", yscale="log", xlabel="link rate, Mbit/s", ylim=(0.05, 400))
        ax.xaxis.set_major_formatter(PLAIN)
        ax.yaxis.set_major_formatter(PLAIN)
        handles = [Line2D([], [], color=colour, lw=2) for colour in colours]
        ax.legend(handles, forms, title="against", loc="upper left", fontsize="small")
        titled(ax, item, evidence)
    axes[0].set_ylabel("features sent and encoded,\nover input sent and encoded")
    names = ["float16", "int8", "break-even", "features are there sooner"]
    figure.legend(
        [
            Line2D([], [], color="0.3", ls="-", lw=2),
            Line2D([], [], color="0.3", ls="--", lw=2),
            Line2D([], [], color="0.3", ls="", marker="o", ms=8),
            plt.Rectangle((0, 0), 1, 1, color="#2166ac", alpha=0.15),
        ],
        names,
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return axes


def _mark(line: pd.DataFrame, ax: Axes, colour: str) -> None:
    """Where a curve crosses 1, on the logs of both."""
    rates, ratios = (np.log(line[name].to_numpy()) for name in ("mbit_s", "ratio"))
    for at in np.flatnonzero(ratios[:-1] * ratios[1:] < 0):
        share = ratios[at] / (ratios[at] - ratios[at + 1])
        ax.plot(np.exp(rates[at] + share * (rates[at + 1] - rates[at])), 1, "o", color=colour, ms=8)


def claim_regions(
    panels: Mapping[str, tuple[pd.DataFrame, Mapping[str, float]]], at_mbit_s: float, evidence: str
) -> np.ndarray:
    """Hybrid's time over that of the quicker other, over link rate and gain.

    Parameters
    ----------
    panels
        Title to a table of ``strategy_sensitivity.region``, and to the gains of real features.
    at_mbit_s
        Where they are marked.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 4.8), sharey=True, squeeze=False)
    for ax, (title, (table, marks)) in zip(axes[0], panels.items(), strict=True):
        image = _region(table, marks, at_mbit_s, ax)
        titled(ax, title, evidence)
    axes[0][0].set_ylabel("input bytes over feature bytes")
    bar = figure.colorbar(image, ax=axes[0], shrink=0.9, ticks=[-2, -1, 0, 1, 2], pad=0.015)
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    bar.set_label("hybrid's time over the quicker other's")
    handles = [
        Line2D([], [], color="black", lw=2.5),
        Line2D([], [], color="0.25", lw=1.5, ls="--"),
        Line2D([], [], color="black", lw=1.2, ls=":"),
        *(Line2D([], [], ls="", marker=mark, color="black", ms=8) for mark in "os"),
    ]
    names = [f"{HOLDS:g}: the claim holds inside", "1: nothing gained", "features of the request"]
    names += [f"{wire}, {at_mbit_s:g} Mbit/s" for wire in ("float16", "int8")]
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    return axes[0]


def _region(
    table: pd.DataFrame, marks: Mapping[str, float], at_mbit_s: float, ax: Axes
) -> ContourSet:
    grid = table.pivot(index="gain", columns="mbit_s", values="ratio")
    rates, gains, ratio = grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy()
    levels = np.linspace(-2, 2, 17)
    image = ax.contourf(rates, gains, np.log2(ratio), levels=levels, cmap="RdBu_r", extend="both")
    ax.contour(rates, gains, ratio, levels=[1.0], colors="0.25", linewidths=1.5, linestyles="--")
    if ratio.min() < HOLDS:
        ax.contour(rates, gains, ratio, levels=[HOLDS], colors="black", linewidths=2.5)
    for (name, gain), marker in zip(marks.items(), "os", strict=False):
        ax.axhline(gain, color="black", lw=1.2, ls=":")
        ax.plot(at_mbit_s, gain, marker, color="black", ms=8)
        ax.text(rates[-1], gain * 1.08, f"{name} ", ha="right", va="bottom", size="small")
    ax.set(xscale="log", yscale="log", xlabel="link rate, Mbit/s")
    ax.xaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_major_formatter(PLAIN)
    ax.grid(visible=False)
    return image
