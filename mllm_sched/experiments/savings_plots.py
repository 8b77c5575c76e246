"""Figures of the calculator. A plot takes a table, returns its axes, and runs nothing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from mllm_sched.experiments.plots import OURS, PENALTY, dashes, scheduler_colour, titled

PLACE_COLOURS = {"edge": "#e6ab02", "server": "#6a51a3", "network": "#7f7f7f"}
NAMED = ("Oracle", OURS, "Adaptive safe GP", "UCB", "Epsilon-greedy", "Fixed at full power")


def short(value: float) -> str:
    """Three digits, without a power of ten.

    Examples
    --------
    >>> short(1234.5), short(0.04567), short(182.13)
    ('1230', '0.0457', '182')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:.6g}"


def bill(annual: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Energy of every scheduler with both intervals, the least on top, its value beside it.

    Parameters
    ----------
    annual
        Of ``savings.annual``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 0.36 * len(annual) + 1.2))[1]
    rows = annual.sort_values("energy_kwh", kind="stable").reset_index(drop=True)
    for place, row in rows.iterrows():
        label, value = str(row["scheduler"]), row["energy_kwh"]
        colour = scheduler_colour(label)
        for ends, width in (("_wide", 1.2), ("", 5.0)):
            low, high = row[f"energy_kwh{ends}_low"], row[f"energy_kwh{ends}_high"]
            ax.plot([low, high], [place, place], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(value, place, "o", ms=8, color=colour, mfc="white" if PENALTY in label else colour)
        ax.annotate(
            f"{short(value)} kWh, {row['money']:.2f} euro",
            (row["energy_kwh_wide_high"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            size="small",
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(rows)), rows["scheduler"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(right=ax.get_xlim()[1] * 4)  # room for the last value
    _plain(ax, "energy of all devices over the period, kWh", subs=(1, 2, 5))
    ax.grid(visible=False, axis="y")
    return titled(ax, "Energy while tasks run; thin lines with the model's error", evidence)


def _plain(ax: Axes, label: str, subs: tuple[int, ...] = (1,)) -> None:
    """A logarithmic x axis with numbers as one would write them."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.minorticks_off()


def volumes(table: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Energy over the oracle's by tasks a day: on the left learning is paid, on the right its end.

    Parameters
    ----------
    table
        Of ``savings.over_volumes``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 4.2))[1]
    ends = {}
    for label in NAMED:
        line = table[table["scheduler"] == label]
        if len(line):
            colour, width = scheduler_colour(label), 2.6 if label == OURS else 1.6
            ax.plot(
                line["tasks_per_day"], line["over_oracle"], dashes(label), color=colour, lw=width
            )
            ends[label] = float(line["over_oracle"].iloc[-1])
    ax.set(xscale="log", yscale="log", ylabel="energy over the oracle's")
    ticks = [1, 1.5, 2, 3, 5, 10, 20]
    ax.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    _plain(ax, "tasks a day of one device, for a year")
    ax.set_xlim(table["tasks_per_day"].min(), table["tasks_per_day"].max())
    ax.set_ylim(bottom=0.93)
    _name_ends(ax, ends)
    return titled(ax, "What learning costs, by how much there is to do", evidence)


def _name_ends(ax: Axes, ends: dict[str, float]) -> None:
    """Names right of their lines, from the lowest; those too close move up."""
    last = -np.inf
    for label in sorted(ends, key=ends.__getitem__):
        point = ax.transData.transform((1, ends[label]))
        last = max(float(ax.transAxes.inverted().transform(point)[1]), last + 0.052)
        ax.annotate(
            f"{label}, {ends[label]:.3f}x",
            (1.02, last),
            xycoords="axes fraction",
            color=scheduler_colour(label),
            va="center",
            size="small",
            annotation_clip=False,
        )


def tornado(
    table: pd.DataFrame, *, ours: str, other: str, evidence: str, ax: Axes | None = None
) -> Axes:
    """How far each input moves the money saved; the input at either end stands beside the bar.

    Parameters
    ----------
    table
        Of ``savings.tornado``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 0.45 * len(table) + 1.3))[1]
    base = float(table["base"].iloc[0])
    for place, row in table.iterrows():
        for end, align, shift in (("low", "right", -5), ("high", "left", 5)):
            colour = "#92c5de" if end == "low" else "#2166ac"
            ax.barh(place, row[end] - base, left=base, color=colour, height=0.6)
            ax.annotate(
                row[f"{end}_at"],
                (row[end], place),
                xytext=(shift, 0),
                textcoords="offset points",
                ha=align,
                va="center",
                size="small",
            )
    ax.axvline(base, color="0.3", lw=1)
    ax.axvline(0, color="0.3", lw=1, ls=":")
    ax.set_yticks(range(len(table)), table["input"])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.margins(x=0.3)
    ax.set_xlabel(f"saved by {ours} against {other}, euro over the period")
    ax.grid(visible=False, axis="y")
    return titled(ax, f"Which input moves the saving most; {base:.2f} euro as it is", evidence)


def strategies(table: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Energy of each strategy by where it is drawn, and its range over all assumptions.

    Parameters
    ----------
    table
        Of ``savings.strategy_annual``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 0.75 * len(table) + 1.3))[1]
    left = np.zeros(len(table))
    for place, colour in PLACE_COLOURS.items():
        width = table[f"{place}_kwh"].to_numpy()
        ax.barh(range(len(table)), width, left=left, color=colour, label=place, height=0.5)
        left += width
    for row in table.itertuples():
        ax.plot([row.low_kwh, row.high_kwh], [row.Index] * 2, "|-", color="0.2", lw=1, ms=12)
        told = f"{short(row.energy_kwh)} ({short(row.low_kwh)} to {short(row.high_kwh)}) kWh"
        ax.annotate(told, (0, row.Index - 0.38), va="center", size="small", annotation_clip=False)
    ax.set_yticks(range(len(table)), table["strategy"])
    ax.set_ylim(len(table) - 0.5, -0.7)
    ax.set_xlabel("energy of all requests over the period, kWh")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    ax.grid(visible=False, axis="y")
    return titled(ax, "Whole requests, the LLM included; lines: range of the assumptions", evidence)
