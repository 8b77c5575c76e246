"""Figures of what a scheduler knows of the arms; as in ``plots.py``, a plot runs nothing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mllm_sched.study.arm_plots import component_marks, empty_plane, mark, plain_ticks, side_legend
from mllm_sched.study.exploration import Exploration
from mllm_sched.study.plots import COMPONENT_COLOURS, titled

FAR = "#a0a0a0"  # the mark of an arm that does not meet the limit
VIEW = 5.0  # times the limit: how far beyond it arms are drawn


def learned(
    seen: Exploration, n: int, *, label: str, evidence: str, ax: Axes | None = None
) -> Axes:
    """What a scheduler knows after n tasks, on the plane of true latency and energy.

    Size grows with plays; filled marks are certified; grey arms are truly beyond the limit; the arm
    of task n is ringed, with the bounds it is believed to be within; the oracle's has a star. Arms
    far beyond the limit are counted, not drawn.
    """
    state, limit_s = seen.after(n), seen.limits["latency_s"]
    end = min(state["latency_s"].max(), VIEW * limit_s)
    ax = empty_plane(state, limit_s, end, ax)
    near = state[state["latency_s"] <= end]
    colours = near["component"].map(COMPONENT_COLOURS).where(near["within"], FAR)
    faces = colours.where(near["certified"].astype(bool), "#ffffff00")
    spots = near["latency_s"], near["energy_j"]
    ax.scatter(*spots, s=_sizes(near), facecolors=faces, edgecolors=colours, lw=1.3, zorder=3)
    _mark_best(ax, near[near["best"]])
    _mark_chosen(ax, near[near["chosen"]])
    _count_far(ax, state[state["latency_s"] > end], end)
    side_legend(ax, [*component_marks(state), *_state_marks()])
    return titled(ax, f"{label} after {n} task{'s' * (n > 1)}", evidence)


def energy_strip(seen: Exploration, n: int, *, evidence: str, ax: Axes | None = None) -> Axes:
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
        _dotted("oracle"),
    ]
    ax.legend(handles=handles, loc="upper right", fontsize="small", title=times)
    return titled(ax, "Energy per task", evidence)


def learned_figure(seen: Exploration, n: int, *, label: str) -> Figure:
    """``learned`` and ``energy_strip`` beside each other."""
    figure = Figure(figsize=(11.5, 4.1))
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    learned(seen, n, label=label, evidence=seen.evidence, ax=left)
    energy_strip(seen, n, evidence=seen.evidence, ax=right)
    return figure


def _sizes(state: pd.DataFrame) -> pd.Series:
    """Areas of marks: an arm that was never played still shows."""
    return 18 + 30 * np.sqrt(state["plays"].astype(float))


def _count_far(ax: Axes, far: pd.DataFrame, end: float) -> None:
    """What cannot be seen, in words."""
    if not len(far):
        return
    said = f"{len(far)} arms beyond {end:.2g} s, {(far['plays'] > 0).sum()} tried"
    chosen = far[far["chosen"]]
    if len(chosen):
        arm = chosen.iloc[0]
        said += f"\nchosen: {arm['component'].upper()}, {arm['latency_s']:.2g} s \u2192"
    ax.text(0.985, 0.03, said, transform=ax.transAxes, ha="right", va="bottom", size="small")


def _mark_best(ax: Axes, best: pd.DataFrame) -> None:
    ax.plot(best["latency_s"], best["energy_j"], "*", color="black", ms=13, mec="white", zorder=5)


def _mark_chosen(ax: Axes, chosen: pd.DataFrame) -> None:
    """A ring, and a cross over the bounds that the scheduler believes in, where it has any."""
    if not len(chosen):
        return
    x, y = chosen["latency_s"].iloc[0], chosen["energy_j"].iloc[0]
    ring = float(_sizes(chosen).iloc[0]) + 130
    ax.scatter([x], [y], s=ring, facecolors="none", edgecolors="black", lw=1.8, zorder=4)
    bounds = chosen.iloc[0][["latency_s_low", "latency_s_high", "energy_j_low", "energy_j_high"]]
    ax.plot(bounds.iloc[:2], [y, y], "-", color="black", lw=1.2, zorder=4)
    ax.plot([x, x], bounds.iloc[2:], "-", color="black", lw=1.2, zorder=4)


def _state_marks() -> list[Line2D]:
    return [
        mark("certified", "0.3"),
        mark("not certified", "0.3", mfc="none"),
        mark("beyond the limit", FAR),
        mark("more plays", "0.3", ms=10),
        mark("chosen, with its bounds", "black", mfc="none", ms=11, mew=1.8),
        mark("oracle's", "black", marker="*", ms=10),
    ]


def _dotted(label: str) -> Line2D:
    return Line2D([], [], color="black", ls=":", label=label)
