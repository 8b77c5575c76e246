"""One scheduler followed task by task: what it chose, and what it then believed of every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices import KnownDevice
from mllm_sched.schedulers import Decision, Scheduler
from mllm_sched.study.landscape import arm_table
from mllm_sched.study.lineup import trusted_arms
from mllm_sched.study.runner import Rule, run
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
