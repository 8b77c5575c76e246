"""What a change of the board cost every rule, from the moment it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.study.lineup import transferred, trusted_arms
from mllm_sched.study.metrics import highest, interval
from mllm_sched.study.plots import OURS
from mllm_sched.study.runner import Rule
from mllm_sched.study.sensitivity import all_tasks
from mllm_sched.study.time_varying import Scenario, play, scenarios
from mllm_sched.tasks import Task

STREAK = 20  # tasks within the limit in a row, after which a rule is said to be safe again
ALLOWED = 0.01  # share of tasks beyond the limit, up to which a rule counts as careful
CHANGES = ("DLA 35 % slower", "the same, slowly", "heat", "other work")  # and all still run
SPOILED = 0.1
RUN = ["scenario", "scheduler", "seed"]


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

    def worst(self, scheduler: str, key: str, evidence: str) -> pd.DataFrame:
        """Violations after the worst change, as a row of a ``claims.csv``; see ``CHANGES``."""
        own = self.summary[self.summary["scheduler"] == scheduler]
        own = own[(own["quantity"] == "violations") & own["scenario"].isin(CHANGES)]
        row = (key, *highest(own), evidence)
        return pd.DataFrame([row], columns=["key", "value", "low", "high", "n", "evidence"])

    def spoiled(self, scheduler: str, evidence: str) -> pd.DataFrame:
        """How many of its runs were beyond the limit for more than a tenth of a change."""
        own = self.runs[(self.runs["scheduler"] == scheduler) & self.runs["scenario"].isin(CHANGES)]
        count = own[own["violations"] > SPOILED].groupby("seed").size().size
        row = ("runs spoiled by a change", count, np.nan, np.nan, own["seed"].nunique(), evidence)
        return pd.DataFrame([row], columns=["key", "value", "low", "high", "n", "evidence"])

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


def safe_under_change(
    task: Task,
    steps: int,
    seeds: Sequence[int],
    limit_s: float,
    n_jobs: int | None = None,
    **settings: float,
) -> pd.DataFrame:
    """The numbers that claims refer to: safe GP-UCB alone, on the simulated board, in every change.

    ``violations after a change, worst``: see ``Aftermath.worst``; ``runs spoiled by a change``: see
    ``Aftermath.spoiled``. A run in some tens decides, so this needs many seeds.

    Parameters
    ----------
    **settings
        Of the rule, beside its fitted hyperparameters.
    """
    board = SimulatedOrin()
    fitted = {"hyperparameters": transferred(board, task, all_tasks())}
    chosen = [scenario for scenario in scenarios(steps) if scenario.label in CHANGES]
    rule = Rule(OURS, "safe-gp-ucb", {**fitted, **settings})
    spread: dict[str, Any] = {"limit_s": limit_s, "trusted": trusted_arms(board), "n_jobs": n_jobs}
    after = aftermath(play(chosen, [rule], task, steps, seeds, **spread), chosen)
    worst = after.worst(OURS, "violations after a change, worst", board.evidence)
    return pd.concat([worst, after.spoiled(OURS, board.evidence)], ignore_index=True)


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
