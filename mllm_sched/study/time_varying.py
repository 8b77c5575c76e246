"""A board that changes while it works: who notices, how fast, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Background, Drift, Expected, Outage, Throttling
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.schedulers import Hyperparameters, Scheduler
from mllm_sched.schedulers.references import truly_best
from mllm_sched.study.lineup import PENALTY
from mllm_sched.study.runner import Rule, run
from mllm_sched.study.spread import spread
from mllm_sched.tasks import Task

SEEDS_PER_JOB = 2


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


def _best(means: Expected, limit_s: float) -> int:
    values = {"energy_j": means.energy_j, "latency_s": means.latency_s}
    return truly_best(values, "energy_j", {"latency_s": limit_s})[0]


def _short(arm: Arm) -> str:
    return f"{str(arm.component).upper()} {arm.power_w:g}W, load {arm.load:g}"


def play(
    chosen: Sequence[Scenario],
    rules: Sequence[Rule],
    task: Task,
    steps: int,
    seeds: int | Sequence[int],
    *,
    limit_s: float,
    trusted: Sequence[Arm],
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """The tables of ``run``, one below the other, with ``scenario`` and ``beyond`` the limit.

    For a seed all rules meet the same noise in all scenarios. A failed task counts as beyond: its
    true latency is infinite.
    """
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    chunks = [numbers[i : i + SEEDS_PER_JOB] for i in range(0, len(numbers), SEEDS_PER_JOB)]
    terms = {"limits": {"latency_s": limit_s}, "seeds": list(trusted)}
    jobs = [(rule, chosen, task, steps, chunk, terms) for rule in rules for chunk in chunks]
    tables = spread(_job, jobs, label="a board that changes", n_jobs=n_jobs)
    parts = [part for scenario in zip(*tables, strict=True) for part in scenario]
    played = pd.concat(parts, ignore_index=True)
    return played.assign(
        scenario=pd.Categorical(played["scenario"], [scenario.label for scenario in chosen]),
        scheduler=pd.Categorical(played["scheduler"], [rule.label for rule in rules]),
        beyond=played["true_latency_s"] > limit_s,
        failed=played["failed"].astype(str),
    )


def _job(
    rule: Rule,
    chosen: Sequence[Scenario],
    task: Task,
    steps: int,
    seeds: Sequence[int],
    terms: Mapping[str, Any],
) -> list[pd.DataFrame]:
    """The runs of one rule, a table for each scenario."""
    runs = [_scenarios(rule, chosen, task, steps, seed, terms) for seed in seeds]
    return [pd.concat(tables, ignore_index=True) for tables in zip(*runs, strict=True)]


def _scenarios(
    rule: Rule,
    chosen: Sequence[Scenario],
    task: Task,
    steps: int,
    seed: int,
    terms: Mapping[str, Any],
) -> list[pd.DataFrame]:
    """All scenarios with one seed; until the first change they are one run, played once."""
    shared = min(scenario.start for scenario in chosen)
    board = SimulatedOrin(np.random.SeedSequence([seed, 0]))
    learned: list[Scheduler] = []
    before = run(
        rule, board, task, shared, seed=seed, watch=lambda s, _: learned.append(s), **terms
    )
    tables = []
    for scenario in chosen:
        changing = SimulatedOrin(deepcopy(board.rng), **scenario.board)
        changing.step = shared
        # The oracle has learned nothing, and asks the board that it was made for.
        scheduler = None if rule.name == "oracle" else deepcopy(learned[-1])
        after = run(rule, changing, task, steps - shared, seed=seed, scheduler=scheduler, **terms)
        table = pd.concat([before, after.assign(step=after["step"] + shared)], ignore_index=True)
        tables.append(table.assign(scenario=scenario.label))
    return tables
