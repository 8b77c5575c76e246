"""Figures of the decoupled pipeline, of sizes and link rates, and the picture of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter

from mllm_sched.experiments.break_even import RESIZED
from mllm_sched.experiments.eavesdropper import Seen
from mllm_sched.experiments.plots import titled
from mllm_sched.experiments.strategy_costs import HOLDS, Tables

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
        Of ``break_even.curves``.
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
        Title to a table of ``strategy_costs.region``, and to the gains of real features.
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


# name, what it holds, x, y; in units of the drawing
BOXES = {
    "task": ("Task", "modality, encoder,\nsize, deadline", 0.0, 1.0),
    "scheduler": ("Scheduler", "safe GP-UCB, UCB,\nThompson, $\\epsilon$-greedy", 2.2, 1.0),
    "device": ("Device", "simulated Orin, trace,\nthis machine", 4.4, 1.0),
    "measurement": ("Measurement", "latency, energy,\nevidence class", 6.6, 1.0),
    "table": ("Table", "one row per task,\nevery seed", 6.6, -0.45),
    "metrics": ("Metrics", "energy over oracle,\nviolations, regret", 4.4, -0.45),
    "figure": ("Figure", "SVG with\nprovenance", 2.2, -0.45),
    "claim": ("Claim", "paper beside ours,\nwith a verdict", 0.0, -0.45),
}
WIDTH, HEIGHT = 1.6, 0.8
SERVICE, REPORT = "#dbe9f6", "#e8e8e8"


def architecture(ax: Axes | None = None) -> Axes:
    """Draw one round trip: from a task to a measurement and back, and on to a claim."""
    ax = ax or plt.subplots(figsize=(9.5, 3.6), layout="constrained")[1]
    for position, (name, text, x, y) in enumerate(BOXES.values()):
        _box(ax, x, y, name, text, SERVICE if position < 4 else REPORT)
    for start, end, label in [
        ("task", "scheduler", "ask()"),
        ("scheduler", "device", "arm"),
        ("device", "measurement", "run()"),
        ("measurement", "table", ""),
        ("table", "metrics", ""),
        ("metrics", "figure", ""),
        ("figure", "claim", ""),
    ]:
        _arrow(ax, start, end, label)
    _feedback(ax)
    ax.set(xlim=(-1.0, 7.6), ylim=(-1.0, 2.15))
    ax.set_axis_off()
    return ax


def _box(ax: Axes, x: float, y: float, name: str, text: str, colour: str) -> None:
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="0.3"
        )
    )
    ax.text(x, y + 0.22, name, ha="center", va="center", weight="bold", size=11)
    ax.text(x, y - 0.13, text, ha="center", va="center", size=8.5, linespacing=1.25)


def _arrow(ax: Axes, start: str, end: str, label: str) -> None:
    x0, y0, x1, y1 = *BOXES[start][2:], *BOXES[end][2:]
    dx = (x1 > x0) - (x1 < x0)
    dy = (y1 > y0) - (y1 < y0)
    tail = (x0 + dx * (WIDTH / 2 + 0.03), y0 + dy * (HEIGHT / 2 + 0.03))
    head = (x1 - dx * (WIDTH / 2 + 0.03), y1 - dy * (HEIGHT / 2 + 0.03))
    ax.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "0.2", "lw": 1.4})
    ax.text((x0 + x1) / 2, y0 + 0.12, label, ha="center", size=9, family="monospace")


def _feedback(ax: Axes) -> None:
    start, end = BOXES["measurement"][2], BOXES["scheduler"][2]
    top = BOXES["task"][3] + HEIGHT / 2 + 0.03
    ax.annotate(
        "",
        (end, top),
        (start, top),
        arrowprops={
            "arrowstyle": "-|>",
            "color": "#c44e52",
            "lw": 1.6,
            "connectionstyle": "bar,fraction=0.1",
        },
    )
    ax.text(
        (start + end) / 2,
        top + 0.5,
        "tell(energy, latency)",
        ha="center",
        size=9,
        family="monospace",
        color="#c44e52",
    )
