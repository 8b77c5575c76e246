"""A board that changes while it works: who notices, how fast, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Background, Drift, Outage, Throttling
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.study.lineup import PENALTY
from mllm_sched.study.metrics import interval
from mllm_sched.study.runner import Rule
from mllm_sched.study.sweep import sweep
from mllm_sched.tasks import Task

STREAK = 20  # tasks within the limit in a row, after which a rule is said to be safe again
ALLOWED = 0.01  # share of tasks beyond the limit, up to which a rule counts as careful
RUN = ["scenario", "scheduler", "seed"]


@dataclass(frozen=True)
class Scenario:
    """What happens to the simulated board.

    Attributes
    ----------
    label
        What tables and figures call it.
    board
        Further arguments of the simulated board.
    start, stop
        First task of the change, and first that is as before; the run's end if it stays.
    full
        Task from which it is complete; by default its first.
    """

    label: str
    board: Mapping[str, Any]
    start: int
    stop: int
    full: int | None = None

    def marks(self, steps: int) -> list[int]:
        """Tasks at which something begins, is complete or ends, in a run of so many."""
        places = {self.start, self.stop, self.start if self.full is None else self.full}
        return sorted(place for place in places if place < steps)


def scenarios(steps: int) -> list[Scenario]:
    """All that happens to the board, as shares of a run of so many tasks."""
    half, back, quarter = steps // 2, steps * 4 // 5, steps // 4
    hot = Throttling(ambient_c=55.0, tau_s=5.0, slowdown_per_k=0.012, start=half)
    slowly = {"drift": [Drift("dla", 1.35, half, quarter)]}
    outage, told = Outage("dla", half, back), Outage("dla", half, back, announced=True)
    return [
        Scenario("nothing changes", {}, half, steps),
        Scenario("DLA 35 % slower", {"drift": [Drift("dla", 1.35, half)]}, half, steps),
        Scenario("the same, slowly", slowly, half, steps, full=half + quarter),
        Scenario("heat", {"throttling": hot}, half, steps),
        Scenario("other work", {"background": [Background(0.2, half, back)]}, half, back),
        Scenario("DLA fails", {"outages": [outage]}, half, back),
        Scenario("DLA out, announced", {"outages": [told]}, half, back),
    ]


def lineup(hyperparameters: Mapping[str, Hyperparameters]) -> list[Rule]:
    """Rules that notice, rules that forget, rules that do neither, and references."""
    fitted, penalty = {"hyperparameters": hyperparameters}, {"penalty": PENALTY}
    return [
        Rule("Oracle", "oracle"),
        Rule("Adaptive safe GP", "adaptive-safe-gp"),
        Rule("Safe GP-UCB", "safe-gp-ucb", fitted),
        Rule("Safe GP-UCB, forgets", "safe-gp-ucb", {**fitted, "forget_rate": 0.002}),
        Rule("UCB + penalty", "ucb", penalty),
        Rule("Sliding-window UCB + penalty", "sliding-window-ucb", {**penalty, "window": 250}),
        Rule("Discounted UCB + penalty", "discounted-ucb", {**penalty, "discount": 0.996}),
        Rule("EXP3 + penalty", "exp3", penalty),
        Rule("Fixed at full power", "fixed"),
    ]


def effects(chosen: Sequence[Scenario], task: Task, limit_s: float) -> pd.DataFrame:
    """What each change does to the board once it is complete, one row a scenario.

    A hot board is shown as warm as the arm that was best before it makes it in the end.
    """
    rows = {}
    for scenario in chosen:
        board = SimulatedOrin(**scenario.board)
        before = board.expected_all(task)
        best = _best(before, limit_s)
        board.step = scenario.stop - 1
        if board.throttling:
            power = float(before.energy_j[best] / before.latency_s[best])
            board.temperature_c = board.throttling.warmed(board.temperature_c, power, np.inf)
        during = board.expected_all(task)
        rows[scenario.label] = {
            "arms within the limit before": int((before.latency_s <= limit_s).sum()),
            "during": int((during.latency_s <= limit_s).sum()),
            "best arm before": _short(board.space[best]),
            "its latency before, s": before.latency_s[best],
            "during, s": during.latency_s[best],
            "best arm during": _short(board.space[_best(during, limit_s)]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _best(means: Any, limit_s: float) -> int:
    return int(np.where(means.latency_s <= limit_s, means.energy_j, np.inf).argmin())


def _short(arm: Arm) -> str:
    return f"{str(arm.component).upper()} {arm.power_w:g}W, load {arm.load:g}"


def play(
    chosen: Sequence[Scenario],
    rules: Sequence[Rule],
    task: Task,
    steps: int,
    seeds: int,
    *,
    limit_s: float,
    trusted: Sequence[Arm],
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """The tables of ``sweep``, one below the other, with ``scenario`` and ``beyond`` the limit.

    A failed task counts as beyond: its true latency is infinite.
    """
    tables = []
    for scenario in chosen:
        table = sweep(
            *(rules, "agx-orin-sim", task, steps, seeds),
            limits={"latency_s": limit_s},
            trusted=trusted,
            device_settings=scenario.board,
            n_jobs=n_jobs,
            label=scenario.label,
        )
        tables.append(table.assign(scenario=scenario.label))
    played = pd.concat(tables, ignore_index=True)
    return played.assign(
        scenario=pd.Categorical(played["scenario"], [scenario.label for scenario in chosen]),
        scheduler=pd.Categorical(played["scheduler"], [rule.label for rule in rules]),
        beyond=played["true_latency_s"] > limit_s,
        failed=played["failed"].astype(str),
    )


@dataclass(frozen=True)
class Aftermath:
    """What every run took from the change on.

    Attributes
    ----------
    runs
        One row per scenario, scheduler and seed; see ``aftermath``.
    summary
        Means over seeds with 95 % intervals, long: ``quantity``, ``value``, ``low``, ``high``.
    """

    runs: pd.DataFrame
    summary: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", _summarise(self.runs))

    def wide(self, quantity: str) -> pd.DataFrame:
        """Means of a quantity, a row a scheduler and a column a scenario; without the oracle."""
        rows = self._rows(quantity)
        table = rows.pivot(index="scheduler", columns="scenario", values="value")
        return table.loc[rows["scheduler"].unique(), rows["scenario"].unique()]

    def with_intervals(self, quantity: str, scale: float = 1.0, digits: int = 1) -> pd.DataFrame:
        """The same as text with its intervals."""
        rows = self._rows(quantity)
        bounds = (scale * rows[["value", "low", "high"]]).round(digits)
        text = f"{{:.{digits}f}} [{{:.{digits}f}}, {{:.{digits}f}}]"
        rows["text"] = [text.format(*values) for values in bounds.to_numpy()]
        table = rows.pivot(index="scheduler", columns="scenario", values="text")
        return table.loc[rows["scheduler"].unique(), rows["scenario"].unique()]

    def _rows(self, quantity: str) -> pd.DataFrame:
        here = self.summary["quantity"] == quantity
        return self.summary[here & (self.summary["scheduler"] != "Oracle")].copy()

    def best(self) -> pd.DataFrame:
        """Who did best in every scenario; equals stand side by side."""
        violations = self.wide("violations").round(4)
        energy = self.wide("energy_over_oracle").round(3)
        careful = energy.where(violations <= ALLOWED)
        return pd.DataFrame(
            {
                "fewest tasks beyond": violations.apply(_least),
                f"least energy with at most {ALLOWED:.0%} beyond": careful.apply(_least),
            }
        )


def _least(column: pd.Series) -> str:
    if column.isna().all():
        return "none"
    return "; ".join(map(str, column.index[column == column.min()]))


def aftermath(played: pd.DataFrame, chosen: Sequence[Scenario]) -> Aftermath:
    """What each run took from the change to its end.

    Per run: ``violations`` and ``failures`` (shares of tasks), ``energy_over_oracle`` (of tasks
    that did not fail), ``energy_afterwards`` (the same, from where the board is as before; NaN if
    it never is), ``tasks_until_safe`` (see there) and ``never_safe`` (whether it never was again).
    """
    starts = {scenario.label: scenario.start for scenario in chosen}
    stops = {scenario.label: scenario.stop for scenario in chosen}
    label = played["scenario"].astype(str)
    late = played[played["step"] >= label.map(starts)]
    back = played[played["step"] >= label.map(stops)]
    groups = late.assign(failures=late["failed"] != "").groupby(RUN, observed=True)
    safe = groups["beyond"].apply(tasks_until_safe)
    runs = pd.DataFrame(
        {
            "violations": groups["beyond"].mean(),
            "failures": groups["failures"].mean(),
            "energy_over_oracle": _energy(late),
            "energy_afterwards": _energy(back),
            "tasks_until_safe": safe.map(lambda found: float(found[0])),
            "never_safe": safe.map(lambda found: float(found[1])),
        }
    )
    return Aftermath(runs.reset_index())


def _energy(table: pd.DataFrame) -> pd.Series:
    """True energy over the oracle's, of the tasks that did not fail."""
    done = table[table["failed"] == ""].groupby(RUN, observed=True)
    return done["true_energy_j"].sum() / done["oracle_energy_j"].sum()


def tasks_until_safe(beyond: pd.Series) -> tuple[int, bool]:
    """Tasks from the first one beyond the limit to the first of 20 in a row within it.

    Also whether there never are so many in a row; all tasks from the first one beyond count then.
    A run that is never beyond takes 0.
    """
    values = beyond.to_numpy(dtype=bool)
    if not values.any():
        return 0, False
    values = values[int(values.argmax()) :]
    if len(values) < STREAK:
        return len(values), True
    found = np.flatnonzero(np.convolve(~values, np.ones(STREAK), mode="valid") > STREAK - 0.5)
    return (int(found[0]), False) if len(found) else (len(values), True)


def _summarise(runs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, group in runs.groupby(RUN[:2], observed=True):
        for quantity in runs.columns.drop(RUN):
            values = group[quantity].dropna().to_numpy()
            if len(values):  # a board that stays as it is has nothing afterwards
                rows.append((*key, quantity, *interval(values), len(values)))
    columns = ["scenario", "scheduler", "quantity", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)
