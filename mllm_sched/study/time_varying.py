"""A board that changes while it works: who notices, how fast, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Background, Drift, Outage, Throttling
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.study.metrics import interval
from mllm_sched.study.runner import Rule
from mllm_sched.study.sweep import sweep
from mllm_sched.tasks import Task

PENALTY = {"penalty": 1.0}
STREAK = 50  # tasks within the limit in a row, after which a rule is said to be safe again


@dataclass(frozen=True)
class Scenario:
    """What happens to the simulated board.

    Attributes
    ----------
    label
        What figures call it.
    board
        Further arguments of the simulated board.
    changes
        Tasks at which something begins or ends; the first is what rules are timed from.
    """

    label: str
    board: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[int, ...] = ()


def scenarios(steps: int) -> list[Scenario]:
    """All that happens to the board, as shares of a run of so many tasks."""
    half, end = steps // 2, steps * 4 // 5
    hot = Throttling(ambient_c=55.0, slowdown_per_k=0.012)
    return [
        Scenario("nothing changes", changes=(half,)),
        Scenario("DLA 35 % slower", {"drift": [Drift("dla", 1.35, half)]}, (half,)),
        Scenario(
            "the same, little by little",
            {"drift": [Drift("dla", 1.35, half, steps // 5)]},
            (half, half + steps // 5),
        ),
        Scenario("heat", {"throttling": hot}, (0,)),
        Scenario(
            "other work takes 30 %", {"background": [Background(0.3, half, end)]}, (half, end)
        ),
        Scenario("DLA fails", {"outages": [Outage("dla", half, end)]}, (half, end)),
    ]


def lineup(hyperparameters: Mapping[str, Hyperparameters]) -> list[Rule]:
    """Rules that forget, rules that notice, and rules that do neither."""
    fitted = {"hyperparameters": hyperparameters}
    return [
        Rule("Oracle", "oracle"),
        Rule("Adaptive safe GP", "adaptive-safe-gp"),
        Rule("Safe GP-UCB", "safe-gp-ucb", fitted),
        Rule("Safe GP-UCB, forgets", "safe-gp-ucb", {**fitted, "forget_rate": 0.002}),
        Rule("UCB + penalty", "ucb", PENALTY),
        Rule("Sliding-window UCB + penalty", "sliding-window-ucb", {**PENALTY, "window": 250}),
        Rule("Discounted UCB + penalty", "discounted-ucb", {**PENALTY, "discount": 0.996}),
    ]


def play(
    chosen: Sequence[Scenario],
    rules: Sequence[Rule],
    task: Task,
    steps: int,
    seeds: int,
    *,
    limit_s: float,
    trusted: Sequence[Arm],
) -> pd.DataFrame:
    """The tables of ``sweep``, one below the other, with a column ``scenario``."""
    tables = [
        sweep(
            rules,
            "agx-orin-sim",
            task,
            steps,
            seeds,
            limits={"latency_s": limit_s},
            trusted=trusted,
            device_settings=scenario.board,
            label=scenario.label,
        ).assign(scenario=scenario.label)
        for scenario in chosen
    ]
    played = pd.concat(tables, ignore_index=True)
    order = [scenario.label for scenario in chosen]
    return played.assign(
        scenario=pd.Categorical(played["scenario"], order),
        scheduler=pd.Categorical(played["scheduler"], [rule.label for rule in rules]),
        beyond=played["true_latency_s"] > limit_s,
    )


def after_change(played: pd.DataFrame, chosen: Sequence[Scenario]) -> pd.DataFrame:
    """What each run took from the first change on.

    Returns
    -------
    One row per scenario, scheduler and seed: ``violations`` and ``failures`` (shares of tasks),
    ``energy_over_oracle`` (of tasks that did not fail), ``tasks_until_safe``: tasks from the
    change until 50 in a row are within the limit; if there are never so many, all of them.
    """
    begun = {scenario.label: scenario.changes[0] for scenario in chosen}
    late = played[played["step"] >= played["scenario"].astype(str).map(begun)]
    known = late.assign(
        oracle_energy_j=late["oracle_energy_j"].where(late["true_energy_j"].notna()),
        failures=late["failed"].astype(str) != "",
    )
    groups = known.groupby(["scenario", "scheduler", "seed"], observed=True)
    energy = groups["true_energy_j"].sum(min_count=1) / groups["oracle_energy_j"].sum(min_count=1)
    return pd.DataFrame(
        {
            "violations": groups["beyond"].mean(),
            "failures": groups["failures"].mean(),
            "energy_over_oracle": energy,
            "tasks_until_safe": groups["beyond"].apply(tasks_until_safe),
        }
    ).reset_index()


def tasks_until_safe(beyond: pd.Series) -> int:
    """Position of the first of 50 tasks in a row that are not beyond; all if there are none."""
    clean = np.convolve(~beyond.to_numpy(dtype=bool), np.ones(STREAK), mode="valid")
    found = np.flatnonzero(clean >= STREAK - 0.5)
    return int(found[0]) if len(found) else len(beyond)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with 95 % intervals, long: ``quantity``, ``value``, ``low``, ``high``."""
    quantities = ["violations", "failures", "energy_over_oracle", "tasks_until_safe"]
    rows = [
        (scenario, scheduler, quantity, *interval(group[quantity].to_numpy()), len(group))
        for (scenario, scheduler), group in runs.groupby(["scenario", "scheduler"], observed=True)
        for quantity in quantities
    ]
    columns = ["scenario", "scheduler", "quantity", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)
