"""Is a scheduler's performance stable? The same comparison at several power levels or limits.

The paper says so and does not say of what. Here it is the energy over that of the best arm, the
tasks beyond the limit, and the saving against the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from mllm_sched.arms import ORIN_POWER_LEVELS, Arm
from mllm_sched.devices import KnownDevice
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import metrics
from mllm_sched.experiments.arm_landscape import arm_table, pareto_front
from mllm_sched.experiments.comparison import all_tasks
from mllm_sched.experiments.lineup import ADAPTIVE, full_power_arms, paper_lineup, transferred
from mllm_sched.experiments.metrics import highest, lowest
from mllm_sched.experiments.plots import (
    COMPONENT_COLOURS,
    OURS,
    PENALTY,
    dashes,
    scheduler_colour,
    titled,
)
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

BASELINES = ("UCB", "Epsilon-greedy")
LIMITS_S = (0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 60.0)  # from infeasible to slack
END = 0.1  # the last tenth of a run shows where a scheduler ended


@dataclass(frozen=True)
class Case:
    """One setting of the comparison.

    Attributes
    ----------
    label
        Its name in tables and figures.
    limit_s
        Latency limit in seconds.
    power_levels
        Those that may be chosen, in watts.
    board
        Further settings of the simulated board.
    """

    label: str
    limit_s: float
    power_levels: tuple[int, ...] = tuple(ORIN_POWER_LEVELS)
    board: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Arguments of the simulated board."""
        return {"power_levels": self.power_levels, **self.board}

    def open(self) -> SimulatedOrin:
        """The board of this case."""
        return SimulatedOrin(**self.settings())

    def feasible(self, task: Task) -> int:
        """How many arms truly meet the limit."""
        return int((self.open().expected_all(task).latency_s <= self.limit_s).sum())

    def trusted(self, task: Task) -> list[Arm]:
        """Full-power arms of GPU and DLA that meet the limit; both of them if neither does.

        Somebody vouches for a trusted arm, so it is one that does meet the limit.
        """
        board = self.open()
        arms = full_power_arms(board.space)
        within = [arm for arm in arms if board.expected(arm, task).latency_s <= self.limit_s]
        return within or arms


def power_cases(limit_s: float, **board: Any) -> list[Case]:
    """Every power level by itself, and all of them to choose from."""
    fixed = [Case(name, limit_s, (level,), board) for level, name in ORIN_POWER_LEVELS.items()]
    return [*fixed, Case("any level", limit_s, board=board)]


def limit_cases(limits_s: Sequence[float], **board: Any) -> list[Case]:
    """Every latency limit, on the whole board."""
    return [Case(f"{limit:g} s", limit, board=board) for limit in limits_s]


@dataclass(frozen=True)
class Stability:
    """What every scheduler came to in every case.

    Attributes
    ----------
    cases
        In order.
    runs
        Of ``metrics.per_run``, with a column ``case``.
    ends
        Mean true latency and energy over the last tenth of a run: ``case``, ``scheduler``,
        ``seed``, ``latency_s``, ``energy_j``, and ``infeasible``, the share of tasks at which the
        scheduler said that no arm can meet the limit.
    feasible
        How many arms truly meet the limit, by case.
    evidence
        What the numbers are.
    """

    cases: Sequence[Case]
    runs: pd.DataFrame
    ends: pd.DataFrame
    feasible: dict[str, int]
    evidence: str

    @cached_property
    def summary(self) -> pd.DataFrame:
        """``metrics.summarise`` of every case: ``case``, ``scheduler``, ``quantity``, ..."""
        return self._by_case(metrics.summarise)

    @cached_property
    def savings(self) -> pd.DataFrame:
        """Energy that safe GP-UCB saves in every case, by other scheduler, paired by seed."""
        return self._by_case(lambda runs: metrics.savings(runs, OURS))

    def wide(self, quantity: str) -> pd.DataFrame:
        """Mean of a quantity: a row a scheduler, a column a case."""
        part = self.summary[self.summary["quantity"] == quantity]
        wide = part.pivot(index="scheduler", columns="case", values="value")
        return wide[[case.label for case in self.cases]]

    def boards(self, task: Task) -> pd.DataFrame:
        """Arms, arms within the limit, and the best arm with its true means; a row a case."""
        rows = []
        for case in self.cases:
            board = case.open()
            means = board.expected_all(task)
            values = {"energy_j": means.energy_j, "latency_s": means.latency_s}
            best, met = truly_best(values, "energy_j", {"latency_s": case.limit_s})
            rows.append(
                {
                    "case": case.label,
                    "arms": len(board.space),
                    "within the limit": self.feasible[case.label],
                    "best arm": str(board.space[best]) if met else f"none; {board.space[best]}",
                    "latency_s": means.latency_s[best],
                    "energy_j": means.energy_j[best],
                }
            )
        return pd.DataFrame(rows)

    def numbers(self) -> pd.DataFrame:
        """The numbers that claims refer to, over the cases in which some arm meets the limit.

        ``energy over oracle, worst`` and ``best``, and the ``spread`` between them, paired by seed;
        ``violations, worst``; ``saving vs <baseline>, least``. What is said of the worst case must
        hold in all, so its interval reaches to the worst bound of any case.

        Raises
        ------
        ValueError
            If no case has an arm within its limit.
        """
        possible = [case.label for case in self.cases if self.feasible[case.label]]
        if not possible:
            limits = ", ".join(f"{case.limit_s:g}" for case in self.cases)
            raise ValueError(f"limits of {limits} s: no arm meets any of them; raise one")
        ours = self.summary[self.summary["scheduler"] == OURS]
        ours = ours[ours["case"].isin(possible)].set_index("quantity")
        energy = ours.loc[["energy_over_oracle"]]
        rows = [
            ("energy over oracle, worst", *highest(energy)),
            ("energy over oracle, best", *lowest(energy)),
            ("energy over oracle, spread", *self._spread(energy)),
            ("violations, worst", *highest(ours.loc[["violations"]])),
        ]
        saved = self.savings[self.savings["case"].isin(possible)]
        for other in BASELINES:
            rows.append((f"saving vs {other}, least", *lowest(saved[saved["scheduler"] == other])))
        table = pd.DataFrame(rows, columns=["key", "value", "low", "high", "n"])
        return table.assign(evidence=self.evidence)

    def _spread(self, energy: pd.DataFrame) -> tuple[Any, ...]:
        """From the best case to the worst, paired by seed."""
        runs = self.runs[self.runs["scheduler"] == OURS]
        wide = runs.pivot(index="seed", columns="case", values="energy_over_oracle")
        means = energy.set_index("case")["value"]
        spread = (wide[means.idxmax()] - wide[means.idxmin()]).to_numpy()
        return (*metrics.mean_interval(spread), len(spread))

    def _by_case(self, summarise: Any) -> pd.DataFrame:
        parts = {
            case.label: summarise(self.runs[self.runs["case"] == case.label].drop(columns="case"))
            for case in self.cases
        }
        return pd.concat(parts, names=["case"]).reset_index("case").reset_index(drop=True)


def lineup(device: KnownDevice, task: Task) -> list[Rule]:
    """The paper's line-up, its rule with hyperparameters for this board, and the adaptive rule."""
    rules = paper_lineup(transferred(device, task, all_tasks()))
    return [*rules[:2], ADAPTIVE, *rules[2:]]


def play(
    cases: Sequence[Case],
    task: Task,
    steps: int,
    seeds: int | Sequence[int],
    rules: Callable[[KnownDevice], list[Rule]] | None = None,
    **spread: Any,
) -> Stability:
    """Play the same rules in every case.

    Parameters
    ----------
    cases, task, steps, seeds
        What is played; for a seed all schedulers of a case meet the same noise.
    rules
        From a board to who plays on it; by default the line-up.
    **spread
        ``n_jobs`` or ``dask`` of ``sweep``.
    """
    runs, ends, made = [], [], {}
    who = rules or (lambda board: lineup(board, task))
    for case in cases:
        limits, key = {"latency_s": case.limit_s}, str(case.settings())
        if key not in made:  # boards of the same settings have the same rules
            made[key] = who(case.open())
        table = sweep(
            made[key],
            SimulatedOrin.name,
            task,
            steps,
            seeds,
            limits=limits,
            trusted=case.trusted(task),
            device_settings=case.settings(),
            allow_infeasible=True,
            label=case.label,
            **spread,
        )
        runs.append(metrics.per_run(table, limits).assign(case=case.label))
        ends.append(_ends(table, steps).assign(case=case.label))
    feasible = {case.label: case.feasible(task) for case in cases}
    return Stability(cases, pd.concat(runs), pd.concat(ends), feasible, SimulatedOrin.evidence)


def _ends(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Where every run ended; see ``Stability.ends``."""
    last = table[table["step"] >= steps - max(1, round(END * steps))]
    columns = {"latency_s": "true_latency_s", "energy_j": "true_energy_j"}
    groups = last.groupby(["scheduler", "seed"], observed=True)
    ends = pd.DataFrame({name: groups[column].mean() for name, column in columns.items()})
    ends["infeasible"] = table.groupby(["scheduler", "seed"], observed=True)["infeasible"].mean()
    return ends.reset_index()


# -- Figures

PANELS = {
    "energy_over_oracle": "energy over the oracle's",
    "violations": "tasks beyond the limit",
    "latency_s": "mean latency, s",
}
NEAR = (6.0, 1.8)  # shown around the front: times the least latency, times the least energy
SHOWN_TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50)


def over_cases(
    played: Stability, *, xlabel: str, title: str, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Energy, violations and latency over the cases, one line a scheduler with its interval.

    Rules with a penalty are left out: where they differ at all, the tables say so.
    """
    if axes is None:
        axes = plt.subplots(1, 3, figsize=(13.5, 4.2))[1]
    labels = [case.label for case in played.cases]
    for ax, (quantity, ylabel) in zip(axes, PANELS.items(), strict=True):
        rows = played.summary[played.summary["quantity"] == quantity]
        for name, line in rows.groupby("scheduler", observed=True, sort=False):
            if PENALTY not in str(name):
                _line(ax, str(name), line.set_index("case").loc[labels])
        ax.set(xlabel=xlabel, ylabel=ylabel)
        short = [label.removesuffix(" s") for label in labels]  # the unit stands with the axis
        ax.set_xticks(range(len(labels)), short, rotation=60 if len(labels) > 6 else 0)
    _scale(axes, len(labels))
    for ax, name in zip(axes, ("energy", "violations", "latency"), strict=True):
        titled(ax, f"{title}: {name}", played.evidence)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axes


def _line(ax: Axes, label: str, line: pd.DataFrame) -> None:
    colour, ours = scheduler_colour(label), label == OURS
    places = np.arange(len(line))
    (drawn,) = ax.plot(places, line["value"], dashes(label), color=colour, label=label)
    drawn.set(marker="o", markersize=5, linewidth=2.6 if ours else 1.5, zorder=3 if ours else 2)
    ax.fill_between(places, line["low"], line["high"], color=colour, alpha=0.18, lw=0)


def _scale(axes: Sequence[Axes], cases: int) -> None:
    energy, share, latency = axes
    energy.set_yscale("log")
    energy.yaxis.set_major_locator(FixedLocator(SHOWN_TICKS))
    energy.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    energy.yaxis.set_minor_locator(NullLocator())
    share.set_yscale("symlog", linthresh=0.01)
    share.set_ylim(-0.001, 1.2)
    share.yaxis.set_major_formatter(PercentFormatter(1.0))
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    for ax in axes:
        ax.set_xlim(-0.3, cases - 0.7)


def ends_on_front(
    played: Stability,
    shown: Sequence[Case],
    task: Task,
    schedulers: Sequence[str],
    *,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """The arms of the board, their Pareto front, and where schedulers ended, one panel a case.

    Only the neighbourhood of the front is shown; all arms of the CPU lie far outside, above and to
    the right. Arms beyond the panel's limit are pale. A scheduler's point is its mean over the last
    tenth of its runs, so it may lie between arms.
    """
    if axes is None:
        size = 4.4 * len(shown), 4.4
        axes = list(plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)[1][0])
    for ax, case in zip(axes, shown, strict=True):
        _arms(ax, case, task)
        here = played.ends[played.ends["case"] == case.label]
        means = here.groupby("scheduler", observed=True)[["latency_s", "energy_j"]].mean()
        for number, name in enumerate(schedulers):
            ring = 15 - 3 * number  # points on the same arm stay visible as rings
            ax.plot(
                *means.loc[name],
                "s" if PENALTY in name else "o",
                ms=ring,
                mfc="none",
                mew=2.2,
                color=scheduler_colour(name),
                label=name,
                zorder=4,
            )
        titled(ax, f"Limit {case.label}", played.evidence)
    handles, _ = axes[-1].get_legend_handles_labels()
    handles += [
        Line2D([], [], marker="o", ls="", color=colour, label=name.upper())
        for name, colour in COMPONENT_COLOURS.items()
        if name != "cpu"
    ]
    axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return axes


def _arms(ax: Axes, case: Case, task: Task) -> None:
    board = arm_table(case.open(), task)
    for component, colour in COMPONENT_COLOURS.items():
        mine = board[board["component"] == component]
        for shown, alpha in ((mine, 0.2), (mine[mine["latency_s"] <= case.limit_s], 0.9)):
            ax.plot(shown["latency_s"], shown["energy_j"], "o", ms=5, alpha=alpha, color=colour)
    front = board[pareto_front(board)].sort_values("latency_s")
    ax.plot(front["latency_s"], front["energy_j"], "-", color="0.3", lw=1.2, label="front")
    ax.axvline(case.limit_s, color="0.3", ls=(0, (1, 2)), lw=1.2)
    ax.set(xscale="log", yscale="log", xlabel="latency, s", ylabel="energy, J")
    quickest, cheapest = board["latency_s"].min(), board["energy_j"].min()
    ax.set_xlim(0.9 * quickest, NEAR[0] * quickest)
    ax.set_ylim(0.97 * cheapest, NEAR[1] * cheapest)
    for axis, ticks in ((ax.xaxis, (0.06, 0.1, 0.2, 0.3)), (ax.yaxis, (2, 2.5, 3))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    ax.label_outer()
