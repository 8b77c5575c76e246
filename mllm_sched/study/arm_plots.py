"""Figures of the arms of a board at one glance; as in ``plots.py``, a plot runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from mllm_sched.arms import power_name
from mllm_sched.study.landscape import pareto_front
from mllm_sched.study.plots import COMPONENT_COLOURS, titled

BEYOND = "#d9d9d9"  # the cell of an arm that does not meet the limit
NAMES = {"latency_s": "latency, s", "energy_j": "energy, J"}


def heat_maps(
    board: pd.DataFrame, quantity: str, *, evidence: str, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """A quantity over power level and load, one panel a component; grey: beyond the limit.

    Parameters
    ----------
    board
        Of ``board_table``, of arms with a component, a power level and a load.
    quantity
        ``latency_s`` or ``energy_j``.
    """
    components = list(dict.fromkeys(board["component"]))
    if axes is None:
        axes = plt.subplots(1, len(components), figsize=(9.5, 2.7), sharey=True)[1]
    within = board.loc[board["within"], quantity]
    shades = LogNorm(within.min(), max(within.max(), within.min() * 1.01))
    for ax, component in zip(axes, components, strict=True):
        _heat_map(ax, board[board["component"] == component], quantity, shades)
        titled(ax, f"{component.upper()}, {NAMES[quantity]}", evidence)
    axes[0].set_ylabel("power level")
    return axes


def _heat_map(ax: Axes, part: pd.DataFrame, quantity: str, shades: LogNorm) -> None:
    values = part.pivot(index="power_w", columns="load", values=quantity)
    within = part.pivot(index="power_w", columns="load", values="within").to_numpy(dtype=bool)
    shown = np.ma.masked_where(~within, values.to_numpy())
    colours = plt.get_cmap("YlGnBu").with_extremes(bad=BEYOND)
    ax.imshow(shown, cmap=colours, norm=shades, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        dark = within[row, column] and shades(value) > 0.55
        colour = "white" if dark else "black" if within[row, column] else "0.45"
        text = f"{value:.2g}" if value < 100 else f"{value:.0f}"
        ax.text(column, row, text, ha="center", va="center", size="x-small", color=colour)
    ax.set_xticks(range(values.shape[1]), [f"{load:.0%}" for load in values.columns])
    ax.set_yticks(range(values.shape[0]), map(power_name, values.index))
    ax.set_xlabel("load")
    ax.grid(visible=False)


def plane(board: pd.DataFrame, limit_s: float, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Latency and energy of every arm, with the limit and the Pareto front."""
    ax = empty_plane(board, limit_s, board["latency_s"].max(), ax)
    for component, part in board.groupby("component", sort=False):
        colour = COMPONENT_COLOURS[str(component)]
        ax.scatter(part["latency_s"], part["energy_j"], s=26, color=colour, lw=0)
    front = board[pareto_front(board)].sort_values("latency_s")
    ax.plot(front["latency_s"], front["energy_j"], "-", color="black", lw=1.5)
    handles = [
        *component_marks(board),
        Line2D([], [], color="black", lw=1.5, label="Pareto front"),
    ]
    side_legend(ax, handles)
    return titled(ax, "Latency and energy of the arms", evidence)


def board_figure(board: pd.DataFrame, limit_s: float, *, evidence: str) -> Figure:
    """Heat maps of latency and energy, and the plane of the arms below them."""
    figure = Figure(figsize=(11.5, 8.2))
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=[1.45, 1]))
    upper.suptitle("The board at a glance; grey arms are beyond the limit", size="medium")
    axes = upper.subplots(2, 3, sharex=True, sharey=True)
    heat_maps(board, "latency_s", evidence=evidence, axes=axes[0])
    heat_maps(board, "energy_j", evidence=evidence, axes=axes[1])
    for ax in axes[0]:
        ax.set_xlabel("")
    plane(board, limit_s, evidence=evidence, ax=lower.subplots())
    return figure


def empty_plane(board: pd.DataFrame, limit_s: float, end: float, ax: Axes | None) -> Axes:
    """Logarithmic axes around the arms up to a latency; a shade on what is beyond the limit."""
    ax = ax or plt.subplots(figsize=(7.5, 4.2))[1]
    energy = board.loc[board["latency_s"] <= end, "energy_j"]
    ax.set(xscale="log", yscale="log", xlabel="latency, s", ylabel="energy, J")
    ax.set(xlim=(board["latency_s"].min() / 1.25, 1.25 * end))
    ax.set(ylim=(energy.min() / 1.4, 1.4 * energy.max()))
    if limit_s < 1.25 * end:
        ax.axvspan(limit_s, 1.25 * end, color="0.95", lw=0, zorder=0)
        ax.axvline(limit_s, color="0.3", ls="--", lw=1, zorder=1)
        ax.text(limit_s, 0.98, " limit", transform=ax.get_xaxis_transform(), va="top", color="0.3")
    plain_ticks(ax)
    return ax


def plain_ticks(ax: Axes) -> None:
    """Plain numbers on logarithmic axes, fewer of them where the range is wide."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_formatter(NullFormatter())


def component_marks(board: pd.DataFrame) -> list[Line2D]:
    """Entries of a legend: the components of a board."""
    names = dict.fromkeys(board["component"])
    return [mark(name.upper(), COMPONENT_COLOURS[name]) for name in names]


def mark(label: str, colour: str, marker: str = "o", ms: float = 6, **look: object) -> Line2D:
    """An entry of a legend."""
    kept = {"color": colour, "marker": marker, "ms": ms, "ls": "none", **look}
    return Line2D([], [], label=label, **kept)  # type: ignore[arg-type]


def side_legend(ax: Axes, handles: list[Line2D]) -> None:
    """A legend right of the axes."""
    ax.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize="small",
    )
