"""The arms of a board side by side: what each costs, and where more power does not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from mllm_sched import paths
from mllm_sched.arms import power_name
from mllm_sched.devices import KnownDevice
from mllm_sched.experiments.plots import COMPONENT_COLOURS, side_legend, titled
from mllm_sched.tasks import Task


def arm_table(device: KnownDevice, task: Task) -> pd.DataFrame:
    """True mean latency (s) and energy (J) of every arm, one row an arm, its levels as columns."""
    means = device.expected_all(task)
    table = pd.DataFrame([dict(arm.levels) for arm in device.space])
    return table.assign(
        encoder=task.encoder,
        latency_s=means.latency_s,
        energy_j=means.energy_j,
        evidence=device.evidence,
    )


def pareto_front(board: pd.DataFrame) -> pd.Series:
    """Whether no other arm is at least as good in latency and energy, and better in one."""
    latency, energy = board["latency_s"].to_numpy(), board["energy_j"].to_numpy()
    as_good = (latency[:, None] <= latency) & (energy[:, None] <= energy)
    better = as_good & ((latency[:, None] < latency) | (energy[:, None] < energy))
    return pd.Series(~better.any(axis=0), index=board.index)


def non_monotone(table: pd.DataFrame, along: str, quantity: str) -> int:
    """Curves along a factor, all else held, that rise somewhere and fall elsewhere."""
    names = ("encoder", "component", "power_w", "load")
    others = [name for name in names if name in table and name != along]
    steps = table.sort_values(along).groupby(others)[quantity].apply(lambda v: v.diff().dropna())
    signs = steps.groupby(level=list(range(len(others)))).agg(["min", "max"])
    return int(((signs["min"] < 0) & (signs["max"] > 0)).sum())


def claim_numbers(
    table: pd.DataFrame, ratio: pd.DataFrame, pair: pd.DataFrame, *, evidence: str
) -> pd.DataFrame:
    """The numbers that claims refer to, by ``key``.

    From ``arm_table``, ``dla_over_gpu`` and ``paper_pair``.
    """
    share, background, dla = (pair.iloc[row] for row in range(3))
    numbers = {
        "energy over power": non_monotone(table, "power_w", "energy_j"),
        "latency over power": non_monotone(table, "power_w", "latency_s"),
        "energy over load": non_monotone(table, "load", "energy_j"),
        "latency over load": non_monotone(table, "load", "latency_s"),
        "DLA over GPU, least": ratio["ratio"].min(),
        "DLA over GPU, mean": ratio["ratio"].mean(),
        "pair latency, load as share": dla["latency_s"] / share["latency_s"],
        "pair energy, load as share": dla["energy_j"] / share["energy_j"],
        "pair latency, load as background": dla["latency_s"] / background["latency_s"],
        "pair energy, load as background": dla["energy_j"] / background["energy_j"],
    }
    table = pd.DataFrame({"key": list(numbers), "value": list(numbers.values())})
    return table.assign(low=float("nan"), high=float("nan"), n=1, evidence=evidence)


def dla_over_gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Tasks per joule of the DLA over the GPU at full share, by encoder and power level."""
    full = table[table["load"] == table["load"].max()]
    wide = full.pivot(index=["encoder", "power_w"], columns="component", values="energy_j")
    return (wide["gpu"] / wide["dla"]).rename("ratio").reset_index()


def paper_pair(device: KnownDevice, task: Task) -> pd.DataFrame:
    """The two configurations that the paper's summary names, beside the same ones here.

    "20 % load" is read both ways: as the share the encoder gets, and as the share others take. For
    the DLA the summary names no load; it is taken to be free.

    Indexed by ``configuration``: ``paper_latency_s``, ``paper_energy_j``, ``latency_s``,
    ``energy_j``, and ``paper_power_w`` and ``power_w``, their quotients.
    """
    gpu, dla = pd.read_csv(paths.PAPER / "orin_pair.csv").to_dict("records")
    busy = replace(task, background_load=0.2)
    rows = {}
    for name, paper, (component, power_w, load), asked in [
        ("GPU, 15W, the encoder gets 20 %", gpu, ("gpu", 15, 0.2), task),
        ("GPU, 15W, others take 20 %", gpu, ("gpu", 15, 1.0), busy),
        ("DLA, 30W", dla, ("dla", 30, 1.0), task),
    ]:
        arm = device.space.arm(component=component, power_w=power_w, load=load)
        ours = device.expected(arm, asked)
        rows[name] = {
            "paper_latency_s": paper["latency_s"],
            "paper_energy_j": paper["energy_j"],
            "latency_s": ours.latency_s,
            "energy_j": ours.energy_j,
            "paper_power_w": paper["energy_j"] / paper["latency_s"],
            "power_w": ours.energy_j / ours.latency_s,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")


# -- Figures

BEYOND = "#d9d9d9"  # the cell of an arm that does not meet the limit
NAMES = {"latency_s": "latency, s", "energy_j": "energy, J"}


def heat_maps(
    board: pd.DataFrame, quantity: str, *, evidence: str, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """A quantity over power level and load, one panel a component; grey: beyond the limit.

    ``board`` is of ``board_table``; ``quantity`` is ``latency_s`` or ``energy_j``.
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
