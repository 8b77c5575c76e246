"""One scheduler followed task by task: what it chose, and what it then believed of every arm."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.request import urlopen

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices import KnownDevice
from mllm_sched.experiments.arm_landscape import (
    arm_table,
    component_marks,
    empty_plane,
    mark,
    plain_ticks,
    side_legend,
)
from mllm_sched.experiments.lineup import trusted_arms
from mllm_sched.experiments.plots import COMPONENT_COLOURS, titled
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.schedulers import Decision, Scheduler
from mllm_sched.tasks import Task


@dataclass(frozen=True)
class Exploration:
    """A run, and everything that was believed on its way.

    Attributes
    ----------
    space
        The arms.
    limits
        Upper limit of each constrained quantity.
    evidence
        What the numbers are, for example ``simulated``.
    board
        True means, one row an arm: its levels, ``latency_s``, ``energy_j``; ``within`` every limit;
        ``best``, the one arm of least energy among those within.
    tasks
        Of ``run``, with ``reason`` (the scheduler's own words) and ``safe_arms`` (how many it had
        certified when it chose; NaN for a rule that certifies none).
    beliefs
        By column of ``Scheduler.belief_table``, each of shape (tasks, arms): row n - 1 is what was
        believed after n tasks.
    """

    space: ArmSpace
    limits: Mapping[str, float]
    evidence: str
    board: pd.DataFrame
    tasks: pd.DataFrame
    beliefs: Mapping[str, NDArray[Any]]

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

    def arm(self, n: int) -> Arm:
        """The arm of task n."""
        arm: Arm = self.space[int(self.tasks["arm"].iloc[n - 1])]
        return arm

    def summary(self, n: int) -> dict[str, float]:
        """Where it stands after n tasks.

        Returns
        -------
        ``tried`` (arms), ``certified`` (arms), ``wrongly certified`` (certified, truly beyond a
        limit), ``energy, J`` and ``oracle, J`` (sums of true means so far), ``over the oracle``
        (their ratio less 1), ``beyond the limit`` (tasks so far on an arm truly beyond one).
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


class _Diary:
    """Takes down what a scheduler knows after each task."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.safe_arms: list[float] = []
        self.tables: list[pd.DataFrame] = []

    def __call__(self, scheduler: Scheduler, decision: Decision) -> None:
        self.reasons.append(decision.reason)
        self.safe_arms.append(np.nan if decision.safe_arms is None else decision.safe_arms)
        self.tables.append(scheduler.belief_table())

    def beliefs(self) -> dict[str, NDArray[Any]]:
        columns = self.tables[0].columns
        return {
            name: np.stack([table[name].to_numpy() for table in self.tables]) for name in columns
        }


def explore(
    device: KnownDevice,
    task: Task,
    limits: Mapping[str, float],
    rule: Rule,
    steps: int,
    seed: int = 0,
) -> Exploration:
    """Play one scheduler for some tasks and take down all it believes on the way.

    Parameters
    ----------
    device
        Freshly opened; its true means are known, and stay the same.
    task
        The task, again and again.
    limits
        Upper limits, ``latency_s`` among them.
    rule
        Who chooses. It trusts the device's ``trusted_arms``.
    steps
        Tasks.
    seed
        Of the scheduler's own randomness.

    Raises
    ------
    ValueError
        If ``steps`` is below 1, a limit is not above 0, or no arm can meet the limits.
    """
    diary = _Diary()
    tasks = run(
        rule,
        device,
        task,
        steps,
        limits=limits,
        seed=seed,
        seeds=trusted_arms(device),
        watch=diary,
    )
    return Exploration(
        device.space,
        dict(limits),
        device.evidence,
        board_table(device, task, limits),
        tasks.assign(reason=diary.reasons, safe_arms=diary.safe_arms),
        diary.beliefs(),
    )


def board_table(device: KnownDevice, task: Task, limits: Mapping[str, float]) -> pd.DataFrame:
    """True means of every arm, which meet the limits (``within``), and which is ``best``."""
    table = arm_table(device, task)
    within = np.logical_and.reduce([table[name] <= limit for name, limit in limits.items()])
    least = table["energy_j"].where(within)
    return table.assign(within=within, best=least == least.min())


# -- Figures

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


Result = TypeVar("Result")


def while_running(
    work: Callable[[], Result], show: Callable[[], None], every_s: float = 2.0
) -> Result:
    """Do some work in a thread, and show how it stands every so many seconds, and at its end.

    Whatever the work raises is raised here.

    Examples
    --------
    >>> shown = []
    >>> while_running(lambda: 7, lambda: shown.append("shown")), shown
    (7, ['shown'])
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while True:
        thread.join(every_s)
        if not thread.is_alive():
            break
        show()
    if errors:
        raise errors[0]
    show()
    return results[0]


def scraped(address: str, wanted: Mapping[str, str]) -> pd.Series:
    """Metrics as Prometheus would scrape them now, summed over their labels.

    Parameters
    ----------
    address
        ``HOST:PORT`` of an agent's metrics.
    wanted
        What to call each sample, by its name.
    """
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    values = {
        called: sum(sample.value for sample in samples if sample.name == name)
        for name, called in wanted.items()
    }
    return pd.Series(values, name="value")
