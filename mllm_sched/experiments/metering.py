"""How well sampled energy can be known: loads with a known integral, measured over and over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from mllm_sched.experiments.plots import titled
from mllm_sched.harness.fake_jetson.waveforms import Pulses, Ramp, Waveform, constant
from mllm_sched.harness.ina3221 import HIGHEST_W
from mllm_sched.harness.sampler import Samples, integrate

LOADS: Mapping[str, Waveform] = MappingProxyType(
    {
        "constant": constant(12.0),
        "square": Pulses(8.0, 40.0, 0.7, 0.3),
        "ramp": Ramp(8.0, 38.0, 5.0),
        "spikes of 5 ms": Pulses(10.0, 15.0, 0.1, 0.005),
        "idle-heavy": Pulses(8.0, 30.0, 2.3, 0.13),
    }
)
"""Loads of a module: none of their periods is a multiple of another's."""

Phases = Callable[[int, np.random.Generator], NDArray[np.float64]]
SCHEDULES: Mapping[str, Phases] = MappingProxyType(
    {
        "random": lambda n, rng: rng.random(n),
        "equal steps": lambda n, rng: np.full(n, rng.random()),
    }
)
"""When a reading is taken within its period: as this harness does, and as most do."""


class OneRail:
    """What ``integrate`` wants to know of the rail that the loads stand for."""

    names: tuple[str, ...] = ("module",)
    counted: tuple[str, ...] = ("module",)
    range_w: tuple[float, float] = (0.0, HIGHEST_W)


def windows(
    loads: Mapping[str, Waveform],
    seconds: Iterable[float],
    rates_hz: Iterable[float],
    repeats: int,
    seed: int = 0,
    schedules: Iterable[str] = ("random",),
) -> pd.DataFrame:
    """Measure windows that begin at random times, as if every reading were taken when due.

    Parameters
    ----------
    loads
        By name.
    seconds
        Lengths of the windows.
    rates_hz
        Readings per second.
    repeats
        Windows of each kind.
    seed
        Of the beginnings and the readings.
    schedules
        Names of ``SCHEDULES``.

    Returns
    -------
    A row per window: ``load``, ``window_s``, ``rate_hz``, ``schedule``, ``error`` (relative),
    ``half_width`` (of the 95 % interval, relative to the truth), ``covered``.
    """
    rng = np.random.default_rng(seed)
    kinds = [
        (load, length, rate, schedule)
        for load in loads
        for length in seconds
        for rate in rates_hz
        for schedule in schedules
    ]
    rows = [
        {
            "load": load,
            "window_s": length,
            "rate_hz": rate,
            "schedule": schedule,
            **_window(loads[load], length, rate, SCHEDULES[schedule], rng),
        }
        for load, length, rate, schedule in kinds
        for _ in range(repeats)
    ]
    return pd.DataFrame(rows)


def _window(
    load: Waveform, seconds: float, rate_hz: float, phases: Phases, rng: np.random.Generator
) -> dict[str, float | bool]:
    start_s, width_s = 40 * rng.random(), 1 / rate_hz
    count = int(np.ceil(seconds / width_s))
    times = start_s + width_s * (np.arange(count) + phases(count, rng))
    power = np.asarray(load.power_w(times), dtype=np.float64) + np.zeros(count)
    samples = Samples(times, np.full(count, width_s), power[:, None])
    reading = integrate(samples, start_s, start_s + seconds, OneRail(), rate_hz)
    truth_j = load.energy_j(start_s, start_s + seconds)
    return {
        "error": reading.energy_j / truth_j - 1,
        "half_width": (reading.high_j - reading.low_j) / 2 / truth_j,
        "covered": reading.low_j <= truth_j <= reading.high_j,
    }


def summary(table: pd.DataFrame, by: Iterable[str]) -> pd.DataFrame:
    """Typical (root mean square) and worst error, interval and coverage of each kind."""
    groups = table.assign(worst=table["error"].abs(), square=table["error"] ** 2).groupby(
        list(by), sort=False
    )
    found = groups.agg(
        error=("square", "mean"),
        worst=("worst", "max"),
        half_width=("half_width", "mean"),
        covered=("covered", "mean"),
    )
    return found.assign(error=np.sqrt(found["error"])).reset_index()


# -- Figures

SCHEDULE_COLOURS = {"random": "#0173b2", "equal steps": "#d55e00"}
LOAD_COLOURS = sns.color_palette("colorblind", 5)
MARKS = ("o", "s", "^", "D", "v", "P")
GOAL = 0.01  # the error that a window of 10 s should stay below


def loads(waveforms: Mapping[str, Waveform], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Power over three periods, one panel a load."""
    if axes is None:
        axes = plt.subplots(1, len(waveforms), figsize=(11, 2.2), sharey=True)[1]
    for ax, colour, (name, waveform) in zip(axes, LOAD_COLOURS, waveforms.items(), strict=False):
        times = np.linspace(0, 3 * waveform.period_s, 6001)
        ax.plot(times, waveform.power_w(times) + np.zeros(len(times)), color=colour, lw=1.2)
        ax.set(title=name, xlabel="time, s")
    axes[0].set_ylabel("power, W")
    axes[0].set_ylim(bottom=0)
    return axes


def error_over_window(summary: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Worst error and stated interval over the length of a window, one colour a load.

    Parameters
    ----------
    summary
        Of ``metering.summary``, by ``load`` and ``window_s``.
    """
    ax = ax or plt.subplots(figsize=(8, 4.2))[1]
    for colour, (name, part) in zip(
        LOAD_COLOURS, summary.groupby("load", sort=False), strict=False
    ):
        ax.plot(part["window_s"], part["half_width"], "--", color=colour, lw=1)
        seen = part[part["worst"] > 1e-6]  # a constant load has no error to show
        ax.plot(seen["window_s"], seen["worst"], "o-", color=colour, ms=4, label=str(name))
    return _against_goal(ax, "length of the window, s", "error of a window's energy")


def error_over_rate(summary: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Typical error over the sampling rate, readings at random times and at equal steps."""
    ax = ax or plt.subplots(figsize=(8, 4.2))[1]
    styles = ("-", ":")
    for style, (name, part) in zip(styles, summary.groupby("load", sort=False), strict=False):
        for schedule, colour in SCHEDULE_COLOURS.items():
            rows = part[part["schedule"] == schedule]
            label = f"{schedule}, {name}"
            ax.plot(rows["rate_hz"], rows["error"], f"o{style}", color=colour, ms=4, label=label)
    ax.set_ylim(1e-4, None)
    return _against_goal(ax, "readings per second", "typical error (root mean square)")


def _against_goal(ax: Axes, xlabel: str, ylabel: str) -> Axes:
    ax.axhline(GOAL, color="0.3", ls=(0, (1, 2)), lw=1.2)
    ax.text(ax.get_xlim()[0], GOAL * 1.08, " 1 %", color="0.3", size="small")
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return titled(ax, "Known loads, sampled", "simulated")


def profile(table: pd.DataFrame, factors: Sequence[str], ax: Axes | None = None) -> Axes:
    """Energy against latency, a point an arm with its 95 % intervals.

    Parameters
    ----------
    table
        Of ``profiling``; failed arms are left out.
    factors
        Columns of the arm: the first is the colour, the second the mark, the rest stand beside.
    """
    ax = ax or plt.subplots(figsize=(8, 4.6))[1]
    done = table[table["failed"] == ""]
    kinds = list(done.groupby(list(factors[:2]), sort=True))
    colours = dict(zip(done[factors[0]].unique(), sns.color_palette("colorblind"), strict=False))
    marks = dict(zip(sorted(done[factors[1]].unique()), MARKS, strict=False))
    for (first, second), part in kinds:
        ax.errorbar(
            part["latency_s"],
            part["energy_j"],
            xerr=part["latency_half_s"],
            yerr=part["energy_half_j"],
            fmt=marks[second],
            ms=7,
            capsize=2,
            color=colours[first],
        )
        label = f"{factors[0]} {first}, {factors[1]} {second}"
        ax.plot([], [], marks[second], color=colours[first], label=label)
        for row in part.to_dict("records"):
            name = ", ".join(f"{factor} {row[factor]}" for factor in factors[2:])
            place = (row["latency_s"], row["energy_j"])
            ax.annotate(name, place, xytext=(6, 5), textcoords="offset points", size="x-small")
    ax.set(xscale="log", xlabel="latency of a task, s", ylabel="energy of a task, J")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    latency, energy = (done[name].iloc[0] for name in ("evidence", "energy_evidence"))
    return titled(ax, "Every arm", f"latency {latency}, energy {energy}")
