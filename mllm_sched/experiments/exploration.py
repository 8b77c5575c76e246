"""One scheduler followed task by task: what it chose, and what it then believed of every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace, power_name
from mllm_sched.devices import KnownDevice
from mllm_sched.experiments.arm_landscape import arm_table, pareto_front
from mllm_sched.experiments.comparison import trusted_arms
from mllm_sched.experiments.plots import COMPONENT_COLOURS, plain_ticks, side_legend, titled
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.schedulers import Decision, Scheduler
from mllm_sched.tasks import Task


@dataclass(frozen=True)
class Exploration:
    """A run, and the belief about every arm after each of its tasks."""

    label: str  # of the scheduler
    space: ArmSpace
    limit_s: float  # on latency
    evidence: str
    board: pd.DataFrame  # of ``board_table``
    tasks: pd.DataFrame  # of ``run``, with ``reason`` and the number of ``safe_arms`` (or NaN)
    beliefs: Mapping[str, NDArray[Any]]  # columns of ``belief_table``, shape (tasks, arms)

    def after(self, n: int) -> pd.DataFrame:
        """The board and what is believed of it after n tasks, one row an arm.

        The columns of ``board`` and of ``Scheduler.belief_table``; ``chosen``, the arm of task n.
        Raises ValueError unless 1 <= n <= number of tasks.
        """
        if not 1 <= n <= len(self.tasks):
            raise ValueError(f"n={n}: expected a task from 1 to {len(self.tasks)}")
        believed = {name: values[n - 1] for name, values in self.beliefs.items()}
        chosen = np.arange(len(self.space)) == self.tasks["arm"].iloc[n - 1]
        return self.board.assign(**believed, chosen=chosen)

    def summary(self, n: int) -> dict[str, float]:
        """Where it stands after n tasks.

        ``tried`` (arms), ``certified`` (arms), ``wrongly certified`` (certified, truly beyond the
        limit), ``energy, J`` and ``oracle, J`` (sums of true means so far), ``over the oracle``
        (their ratio less 1), ``beyond the limit`` (tasks so far on an arm truly beyond it).
        """
        state, done = self.after(n), self.tasks.iloc[:n]
        spent, least = done["true_energy_j"].sum(), done["oracle_energy_j"].sum()
        return {
            "tried": float((state["plays"] > 0).sum()),
            "certified": float(state["certified"].sum()),
            "wrongly certified": float((state["certified"] & ~state["within"]).sum()),
            "energy, J": float(spent),
            "oracle, J": float(least),
            "over the oracle": float(spent / least - 1.0),
            "beyond the limit": float((~self.board["within"].to_numpy())[done["arm"]].sum()),
        }


def explore(
    device: KnownDevice, task: Task, limit_s: float, rule: Rule, steps: int, seed: int = 0
) -> Exploration:
    """Play one scheduler for some tasks and keep all that it believes on the way.

    ``device`` is freshly opened, its true means known and constant; its ``trusted_arms`` are the
    scheduler's seeds. Raises ValueError if ``steps`` is below 1, the limit is not above 0, or no
    arm can meet it.
    """
    decisions: list[Decision] = []
    tables: list[pd.DataFrame] = []

    def watch(scheduler: Scheduler, decision: Decision) -> None:
        decisions.append(decision)
        tables.append(scheduler.belief_table())

    trusted, limits = trusted_arms(device), {"latency_s": limit_s}
    tasks = run(rule, device, task, steps, limits=limits, seed=seed, seeds=trusted, watch=watch)
    safe_arms = [np.nan if each.safe_arms is None else each.safe_arms for each in decisions]
    return Exploration(
        rule.label,
        device.space,
        limit_s,
        device.evidence,
        board_table(device, task, limit_s),
        tasks.assign(reason=[each.reason for each in decisions], safe_arms=safe_arms),
        {name: np.stack([table[name] for table in tables]) for name in tables[0].columns},
    )


def board_table(device: KnownDevice, task: Task, limit_s: float) -> pd.DataFrame:
    """``arm_table`` with ``within`` the limit, and ``best``: of these the arm of least energy."""
    table = arm_table(device, task)
    within = table["latency_s"] <= limit_s
    least = table["energy_j"].where(within)
    return table.assign(within=within, best=least == least.min())


# -- Figures: the board, and what a scheduler knows of it

BEYOND = "#d9d9d9"  # the cell of an arm that does not meet the limit
NAMES = {"latency_s": "latency, s", "energy_j": "energy, J"}


def heat_maps(
    board: pd.DataFrame, quantity: str, *, evidence: str, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """``latency_s`` or ``energy_j`` of a ``board_table`` by component, power level and load."""
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
    front_mark = Line2D([], [], color="black", lw=1.5, label="Pareto front")
    side_legend(ax, [*component_marks(board), front_mark])
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


def component_marks(board: pd.DataFrame) -> list[Line2D]:
    """Entries of a legend: the components of a board."""
    names = dict.fromkeys(board["component"])
    return [mark(name.upper(), COMPONENT_COLOURS[name]) for name in names]


def mark(label: str, colour: str, marker: str = "o", ms: float = 6, **look: object) -> Line2D:
    """An entry of a legend."""
    kept = {"color": colour, "marker": marker, "ms": ms, "ls": "none", **look}
    return Line2D([], [], label=label, **kept)  # type: ignore[arg-type]


FAR = "#a0a0a0"  # the mark of an arm that does not meet the limit
VIEW = 5.0  # times the limit: how far beyond it arms are drawn


def learned(seen: Exploration, n: int, ax: Axes | None = None) -> Axes:
    """What a scheduler knows after n tasks, on the plane of true latency and energy.

    Size grows with plays; filled marks are certified; grey arms are truly beyond the limit; the arm
    of task n is ringed, with the bounds it is believed to be within; the oracle's has a star. Arms
    far beyond the limit are counted, not drawn.
    """
    state = seen.after(n)
    end = min(state["latency_s"].max(), VIEW * seen.limit_s)
    ax = empty_plane(state, seen.limit_s, end, ax)
    near, far = state[state["latency_s"] <= end], state[state["latency_s"] > end]
    colours = near["component"].map(COMPONENT_COLOURS).where(near["within"], FAR)
    faces = colours.where(near["certified"].astype(bool), "#ffffff00")
    spots = near["latency_s"], near["energy_j"]
    ax.scatter(*spots, s=_sizes(near), facecolors=faces, edgecolors=colours, lw=1.3, zorder=3)
    best = near[near["best"]]
    ax.plot(best["latency_s"], best["energy_j"], "*", color="black", ms=13, mec="white", zorder=5)
    _ring(ax, near[near["chosen"]])
    if len(far):  # counted in words
        said = f"{len(far)} arms beyond {end:.2g} s, {(far['plays'] > 0).sum()} tried"
        for arm in far[far["chosen"]].itertuples():
            said += f"\nchosen: {arm.component.upper()}, {arm.latency_s:.2g} s \u2192"
        ax.text(0.985, 0.03, said, transform=ax.transAxes, ha="right", va="bottom", size="small")
    marks = [
        mark("certified", "0.3"),
        mark("not certified", "0.3", mfc="none"),
        mark("beyond the limit", FAR),
        mark("more plays", "0.3", ms=10),
        mark("chosen, with its bounds", "black", mfc="none", ms=11, mew=1.8),
        mark("oracle's", "black", marker="*", ms=10),
    ]
    side_legend(ax, [*component_marks(state), *marks])
    return titled(ax, f"{seen.label} after {n} task{'s' * (n > 1)}", seen.evidence)


def energy_strip(seen: Exploration, n: int, ax: Axes | None = None) -> Axes:
    """Energy of each of the first n tasks, with the oracle's; a cross is beyond the limit."""
    ax = ax or plt.subplots(figsize=(4.6, 3.4))[1]
    done, tasks = seen.tasks.iloc[:n], np.arange(1, n + 1)
    arms = seen.board.iloc[done["arm"]].reset_index(drop=True)
    colours = arms["component"].map(COMPONENT_COLOURS)
    for within, marker in ((True, "o"), (False, "x")):
        part = (arms["within"] == within).to_numpy()
        energy = done["true_energy_j"].to_numpy()[part]
        ax.scatter(tasks[part], energy, s=22, marker=marker, c=colours[part], lw=1.3, zorder=3)
    ax.plot([0, len(seen.tasks)], [done["oracle_energy_j"].iloc[-1]] * 2, ":", color="black")
    ax.set(xlabel="task", ylabel="energy, J", xlim=(0, len(seen.tasks) + 1), yscale="log")
    least, most = done["oracle_energy_j"].min(), seen.tasks["true_energy_j"].max()
    most = max(most, 2 * least)
    ax.set_ylim(0.8 * least, most * (most / least) ** 0.45)  # room for the legend
    plain_ticks(ax)
    times = f"{1 + seen.summary(n)['over the oracle']:.3g} times the oracle's so far"
    handles = [
        mark("within the limit", "0.3"),
        mark("beyond the limit", "0.3", "x"),
        Line2D([], [], color="black", ls=":", label="oracle"),
    ]
    ax.legend(handles=handles, loc="upper right", fontsize="small", title=times)
    return titled(ax, "Energy per task", seen.evidence)


def _sizes(state: pd.DataFrame) -> pd.Series:
    return 18 + 30 * np.sqrt(state["plays"].astype(float))


def _ring(ax: Axes, chosen: pd.DataFrame) -> None:
    """A ring, and a cross over the bounds that the scheduler believes in, where it has any."""
    for (_, arm), size in zip(chosen.iterrows(), _sizes(chosen), strict=True):
        x, y = arm["latency_s"], arm["energy_j"]
        look: dict[str, Any] = {"color": "black", "lw": 1.2, "zorder": 4}
        ax.scatter([x], [y], s=size + 130, facecolors="none", edgecolors="black", lw=1.8, zorder=4)
        ax.plot([arm["latency_s_low"], arm["latency_s_high"]], [y, y], "-", **look)
        ax.plot([x, x], [arm["energy_j_low"], arm["energy_j_high"]], "-", **look)
