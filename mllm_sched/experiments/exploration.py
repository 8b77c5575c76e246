"""One scheduler followed task by task: what it chose, and what it then believed of every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.devices import KnownDevice
from mllm_sched.experiments.arm_landscape import (
    arm_table,
    component_marks,
    empty_plane,
    mark,
    plain_ticks,
)
from mllm_sched.experiments.comparison import trusted_arms
from mllm_sched.experiments.plots import COMPONENT_COLOURS, side_legend, titled
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
    """True means of every arm: its levels, ``latency_s``, ``energy_j``; ``within`` the limit.

    ``best`` is the one arm of least energy among those within.
    """
    table = arm_table(device, task)
    within = table["latency_s"] <= limit_s
    least = table["energy_j"].where(within)
    return table.assign(within=within, best=least == least.min())


# -- Figures

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
    """Areas of marks: an arm that was never played still shows."""
    return 18 + 30 * np.sqrt(state["plays"].astype(float))


def _ring(ax: Axes, chosen: pd.DataFrame) -> None:
    """A ring, and a cross over the bounds that the scheduler believes in, where it has any."""
    for (_, arm), size in zip(chosen.iterrows(), _sizes(chosen), strict=True):
        x, y = arm["latency_s"], arm["energy_j"]
        look: dict[str, Any] = {"color": "black", "lw": 1.2, "zorder": 4}
        ax.scatter([x], [y], s=size + 130, facecolors="none", edgecolors="black", lw=1.8, zorder=4)
        ax.plot([arm["latency_s_low"], arm["latency_s_high"]], [y, y], "-", **look)
        ax.plot([x, x], [arm["energy_j_low"], arm["energy_j_high"]], "-", **look)
