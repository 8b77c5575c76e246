"""A board that changes while it works, and what each run took from the change on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Background, Drift, Throttling
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import metrics
from mllm_sched.experiments.comparison import OURS, all_tasks, transferred, trusted_arms
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.schedulers import Scheduler
from mllm_sched.tasks import Task

RUN = ["scenario", "scheduler", "seed"]
STREAK = 20  # tasks within the limit in a row, after which a rule is safe again
SPOILED = 0.1  # share of tasks beyond the limit from which a run counts as spoiled


@dataclass(frozen=True)
class ChangeScenario:
    """What happens to the simulated board."""

    label: str
    board: Mapping[str, Any]  # further arguments of the simulated board
    start: int  # first task of the change
    stop: int  # first task that is as before; the run's end if the change stays
    full: int | None = None  # task from which it is complete; by default its first


def changes(steps: int) -> list[ChangeScenario]:
    """Changes that leave all components running, in a run of so many tasks."""
    half, back, quarter = steps // 2, steps * 4 // 5, steps // 4
    slowly = {"drift": [Drift("dla", 1.35, half, quarter)]}
    hot = Throttling(ambient_c=55.0, tau_s=5.0, slowdown_per_k=0.012, start=half)
    return [
        ChangeScenario("DLA 35 % slower", {"drift": [Drift("dla", 1.35, half)]}, half, steps),
        ChangeScenario("the same, slowly", slowly, half, steps, full=half + quarter),
        ChangeScenario("heat", {"throttling": hot}, half, steps),
        ChangeScenario("other work", {"background": [Background(0.2, half, back)]}, half, back),
    ]


def play(
    scenarios: Sequence[ChangeScenario],
    rules: Sequence[Rule],
    task: Task,
    steps: int,
    seeds: Sequence[int],
    *,
    limit_s: float,
    trusted: Sequence[Arm],
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """The tables of ``run``, one below the other, with ``scenario`` and ``beyond`` the limit.

    For a seed all rules meet the same noise in all scenarios. A failed task counts as beyond: its
    true latency is infinite.
    """
    terms = {"limits": {"latency_s": limit_s}, "seeds": list(trusted)}
    jobs = [(rule, scenarios, task, steps, seed, terms) for rule in rules for seed in seeds]
    played = pd.concat(
        spread(_play, jobs, label="a board that changes", n_jobs=n_jobs), ignore_index=True
    )
    return played.assign(
        scenario=pd.Categorical(played["scenario"], [scenario.label for scenario in scenarios]),
        scheduler=pd.Categorical(played["scheduler"], [rule.label for rule in rules]),
        beyond=played["true_latency_s"] > limit_s,
        failed=played["failed"].astype(str),
    )


def _play(
    rule: Rule,
    scenarios: Sequence[ChangeScenario],
    task: Task,
    steps: int,
    seed: int,
    terms: Mapping[str, Any],
) -> pd.DataFrame:
    """All scenarios with one seed; until the first change they are one run, played once."""
    shared = min(scenario.start for scenario in scenarios)
    board = SimulatedOrin(np.random.SeedSequence([seed, 0]))
    learned: list[Scheduler] = []
    before = run(
        rule, board, task, shared, seed=seed, watch=lambda s, _: learned.append(s), **terms
    )
    tables = []
    for scenario in scenarios:
        changing = SimulatedOrin(deepcopy(board.rng), **scenario.board)
        changing.step = shared
        # The oracle has learned nothing, and asks the board that it was made for.
        scheduler = None if rule.name == "oracle" else deepcopy(learned[-1])
        after = run(rule, changing, task, steps - shared, seed=seed, scheduler=scheduler, **terms)
        after["step"] += shared
        tables += [before.assign(scenario=scenario.label), after.assign(scenario=scenario.label)]
    return pd.concat(tables, ignore_index=True)


def aftermath(played: pd.DataFrame, scenarios: Sequence[ChangeScenario]) -> pd.DataFrame:
    """What each run took from the change to its end, one row per scenario, scheduler and seed.

    ``violations`` and ``failures`` (shares of tasks), ``energy_over_oracle`` (of tasks that did not
    fail), ``energy_afterwards`` (the same, from where the board is as before; NaN if it never is),
    ``tasks_until_safe`` (see there) and ``never_safe`` (whether it never was again).
    """
    label = played["scenario"].astype(str)
    late = played[played["step"] >= label.map({each.label: each.start for each in scenarios})]
    back = played[played["step"] >= label.map({each.label: each.stop for each in scenarios})]
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
    return runs.reset_index()


def _energy(table: pd.DataFrame) -> pd.Series:
    """True energy over the oracle's, of the tasks that did not fail."""
    done = table[table["failed"] == ""].groupby(RUN, observed=True)
    return done["true_energy_j"].sum() / done["oracle_energy_j"].sum()


def tasks_until_safe(beyond: pd.Series) -> tuple[int, bool]:
    """Tasks from the first one beyond the limit to the first of ``STREAK`` in a row within it.

    Also whether there never are so many; all tasks from the first one beyond count then.
    """
    values = beyond.to_numpy(dtype=bool)
    if not values.any():
        return 0, False
    values = values[int(values.argmax()) :]
    if len(values) < STREAK:
        return len(values), True
    found = np.flatnonzero(np.convolve(~values, np.ones(STREAK), mode="valid") > STREAK - 0.5)
    return (int(found[0]), False) if len(found) else (len(values), True)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of ``aftermath`` with 95 % intervals; see ``metrics.summarise``."""
    tables = [
        metrics.summarise(group.drop(columns="scenario")).assign(scenario=scenario)
        for scenario, group in runs.groupby("scenario", observed=True)
    ]
    columns = ["scenario", "scheduler", "quantity", "value", "low", "high", "n"]
    # A board that stays as it is has no energy afterwards.
    return pd.concat(tables, ignore_index=True)[columns].dropna(subset="value")


def safe_under_change(
    task: Task,
    steps: int,
    seeds: Sequence[int],
    limit_s: float,
    n_jobs: int | None = None,
    **settings: float,
) -> pd.DataFrame:
    """The numbers that claims refer to: safe GP-UCB alone, in every one of ``changes``.

    ``violations after a change, worst``: share of tasks in the worst change. ``runs spoiled by a
    change``: how many seeds violated the limit in more than a tenth of the tasks after some change.
    ``settings`` are further ones of the rule.
    """
    board, scenarios = SimulatedOrin(), changes(steps)
    fitted = {"hyperparameters": transferred(board, task, all_tasks())}
    rule = Rule(OURS, "safe-gp-ucb", {**fitted, **settings})
    trusted = trusted_arms(board)
    played = play(
        scenarios, [rule], task, steps, seeds, limit_s=limit_s, trusted=trusted, n_jobs=n_jobs
    )
    runs = aftermath(played, scenarios)
    summary = summarise(runs)
    worst = metrics.highest(summary[summary["quantity"] == "violations"])
    spoiled = runs.loc[runs["violations"] > SPOILED, "seed"].nunique()
    rows = [
        ("violations after a change, worst", *worst),
        ("runs spoiled by a change", spoiled, np.nan, np.nan, runs["seed"].nunique()),
    ]
    return metrics.claim_table(rows, board.evidence)
