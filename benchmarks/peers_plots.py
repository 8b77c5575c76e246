"""Figures of the comparison with the libraries; ours in the palette of the other figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from mllm_sched.study.plots import scheduler_colour, use_style

# Colour and marker; those of a library share a colour.
STYLES = {
    "adaptive-safe-gp": ("#d55e00", "o"),
    "safe-gp-ucb": (scheduler_colour("Safe GP-UCB"), "o"),
    "ucb + penalty": (scheduler_colour("UCB"), "o"),
    "river UCB + penalty": ("#b3b3b3", "v"),
    "MABWiser UCB1 + penalty": ("#8c8c8c", "^"),
    "scikit-learn GP, safe rule": ("#7a6a58", "s"),
    "GPyTorch GP, safe rule, fixed": ("#4d4d4d", "D"),
    "BoTorch constrained EI, kept": ("#8a5a83", "P"),
    "BoTorch constrained EI, refit": ("#8a5a83", "X"),
    "bayesian-optimization, refit": ("#5b7f5b", "p"),
    "SafeOpt": ("#5a7d8c", "<"),
    "SafeOpt, safe UCB": ("#5a7d8c", ">"),
}


def cost(table: pd.DataFrame) -> Figure:
    """Milliseconds a decision over measurements, one panel per number of arms."""
    use_style()
    sizes = sorted(table["arms"].unique())
    figure, axes = plt.subplots(1, len(sizes), figsize=(12, 4.6), sharey=True, squeeze=False)
    for ax, arms in zip(axes[0], sizes, strict=True):
        for rule, rows in table[table["arms"] == arms].groupby("rule", sort=False):
            colour, marker = STYLES[str(rule)]
            style = "--" if str(rule).endswith("refit") else "-"
            ax.plot(rows["measurements"], rows["ms"], style, color=colour, marker=marker, ms=6)
        told = sorted(table["measurements"].unique())
        ax.set(xscale="log", yscale="log", xlabel="measurements so far", title=f"{arms} arms")
        ax.set_xlim(told[0] / 1.6, told[-1] * 1.6)
        ax.set_xticks(told, [f"{value:,}" for value in told])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0][0].set_ylabel("ask + tell, ms (median)")
    _legend(figure, list(table["rule"].unique()), lines=True)
    figure.suptitle("Cost of a decision, one thread (measured; no point: not run)")
    return figure


def quality(table: pd.DataFrame) -> Figure:
    """Energy over the oracle's against violations, one panel per family, at the least noise."""
    use_style()
    table = table[table["noise"] == table["noise"].min()]
    families = list(table["family"].unique())
    figure, axes = plt.subplots(2, -(-len(families) // 2), figsize=(11, 7.4), squeeze=False)
    longest = table["tasks"].max()
    for ax, family in zip(axes.flat, families, strict=False):
        rows = table[table["family"] == family]
        for row in _shown(rows, longest).itertuples():
            colour, marker = STYLES[row.rule]
            filled = row.tasks == longest
            ax.plot(
                row.violations,
                row.energy_median,
                marker,
                ms=9,
                mfc=colour if filled else "none",
                mec="white" if filled else colour,
                mew=0.6 if filled else 1.6,
                clip_on=False,
                zorder=3,
            )
        ax.set_xscale("symlog", linthresh=0.01)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        top = 1.1 * rows["energy_median"].max()
        ax.set(xlim=(-0.0008, 1.0), ylim=(0.98, top), title=family)
        close = (1, 1.1, 1.2, 1.5, 2, 3) if top < 4 else (1, 1.5, 2, 3, 5, 10, 20, 50)
        ticks = [tick for tick in close if tick <= top]
        ax.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("tasks beyond the latency limit")
        ax.set_ylabel("energy over the oracle's (median)")
    _legend(figure, list(table["rule"].unique()), lines=False)
    few = table[table["tasks"] < longest]["tasks"]
    hollow = f"; hollow: the first {few.iloc[0]} tasks on fewer tables" if len(few) else ""
    figure.suptitle(
        f"Energy against violations over {longest} tasks, noise {table['noise'].iloc[0]:.0%} "
        f"(simulated{hollow})"
    )
    return figure


def _shown(rows: pd.DataFrame, longest: int) -> pd.DataFrame:
    """Of the smaller subsets, ours stand for one: that of the most tables."""
    few = rows[rows["tasks"] < longest]
    most = few.groupby("rule")["tables"].transform("max") == few["tables"]
    return pd.concat([rows[rows["tasks"] == longest], few[most]])


def _legend(figure: Figure, rules: list[str], *, lines: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=STYLES[rule][0],
            marker=STYLES[rule][1],
            ls=("--" if rule.endswith("refit") else "-") if lines else "",
            label=rule,
        )
        for rule in STYLES
        if rule in rules
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize="small")
