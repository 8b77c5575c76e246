"""Figures of the comparison with the libraries; ours in the palette of the other figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

from mllm_sched.experiments.plots import scheduler_colour, use_style

# Colour and marker; those of a library share a colour.
STYLES = {
    "adaptive-safe-gp": (scheduler_colour("Adaptive safe GP"), "o"),
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

OURS = ("adaptive-safe-gp", "safe-gp-ucb", "ucb + penalty")


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
    """Energy beyond the oracle's against violations, one panel per family, at the least noise."""
    use_style()
    table = table[table["noise"] == table["noise"].min()]
    families = list(table["family"].unique())
    figure, axes = plt.subplots(2, -(-len(families) // 2), figsize=(11, 7.4), squeeze=False)
    longest = table["tasks"].max()
    for ax, family in zip(axes.flat, families, strict=False):
        rows = table[table["family"] == family]
        for row in _shown(rows, longest).itertuples():
            colour, marker = STYLES[row.rule]
            filled, ours = row.tasks == longest, row.rule in OURS
            ax.plot(
                row.violations,
                row.energy_median - 1,
                marker,
                ms=13 if ours else 7,  # so that both show where a peer does what ours does
                mfc=colour if filled else "none",
                mec="white" if filled else colour,
                mew=0.6 if filled else 1.6,
                clip_on=False,
                zorder=3 if ours else 4,
            )
        excess = rows["energy_median"] - 1
        ax.set_xscale("symlog", linthresh=0.01)
        if (excess > 0).all():
            ax.set_yscale("log")
        else:  # a rule that breaks the limit can take less than the oracle
            ax.set_yscale("symlog", linthresh=0.01)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.01, subs=(1, 2, 5)))
        bottom = min(0.8 * excess.min(), 1.25 * excess.min())
        ax.set(xlim=(-0.0008, 1.0), ylim=(bottom, 1.5 * max(excess.max(), 0.01)), title=family)
        ax.minorticks_off()
        ax.set_xlabel("tasks beyond the latency limit")
        ax.set_ylabel("energy beyond the oracle's (median)")
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
