"""Schedulers on random tables: energy over the oracle and true violations, over many tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.schedulers import make_scheduler
from mllm_sched.study.families import FAMILIES, Table
from mllm_sched.study.metrics import interval
from mllm_sched.study.runner import Rule
from mllm_sched.study.spread import spread

TABLES_PER_JOB = 5
SLOWER = 1.35  # what a drift makes of the latency of the best arm's component


@dataclass(frozen=True)
class Trial:
    """One rule on the tables of one family.

    Attributes
    ----------
    rule
        Who chooses.
    family, arms
        Of ``families.FAMILIES``.
    noise
        Standard deviation of log latency and of log power of one measurement, in units of those of
        the table.
    drift
        Whether the component of the best arm becomes 35 % slower at half-time.
    tasks
        How many.
    heavy
        Whether noise has heavy tails: Student's t with 3 degrees of freedom, same deviation.
    raw
        Whether the rule models the outcomes themselves instead of their logarithms: it is told
        their exponentials.
    seeds
        How many of the trusted arms the rule is told; all by default.
    label
        What is different in this trial.
    """

    rule: Rule
    family: str
    arms: int
    noise: float = 0.03
    drift: bool = False
    tasks: int = 500
    heavy: bool = False
    raw: bool = False
    seeds: int | None = None
    label: str = ""

    def play(self, seed: int) -> tuple[float, float]:
        """Mean energy over the oracle's, and share of tasks on an arm truly beyond the limit."""
        table, rng = FAMILIES[self.family](seed, self.arms), np.random.default_rng([6, seed])
        draw = _student if self.heavy else _normal
        spreads, best_j = np.array(table.noise_sds(self.noise)), table.best_j()
        first_j = float(table.energy_j[table.trusted[0].index])
        told = (
            (lambda value, unit: math.exp(value / unit - 1))
            if self.raw
            else (lambda value, _: value)
        )
        scheduler = make_scheduler(
            self.rule.name,
            table.space,
            limits={"latency_s": told(table.limit_s, table.limit_s)},
            seeds=table.trusted[: self.seeds],
            rng=seed,
            **self.rule.settings,
        )
        energies, violations = np.empty(self.tasks), np.empty(self.tasks, dtype=bool)
        for task in range(self.tasks):
            if self.drift and task == self.tasks // 2:
                table = _slower(table)
                best_j = table.best_j()
            decision = scheduler.ask()
            arm, noise = decision.arm.index, spreads * draw(rng)
            latency_s = table.latency_s[arm] * math.exp(noise[0])
            energy_j = table.energy_j[arm] * math.exp(noise.sum())
            scheduler.tell(
                decision.id,
                latency_s=told(latency_s, table.limit_s),
                energy_j=told(energy_j, first_j),
            )
            energies[task] = table.energy_j[arm] / best_j
            violations[task] = table.latency_s[arm] > table.limit_s
        return float(energies.mean()), float(violations.mean())


def play_all(trials: Iterable[Trial], tables: int, n_jobs: int | None = None) -> pd.DataFrame:
    """Every trial on so many tables, the same for all; see ``spread`` for where.

    Returns
    -------
    One row per trial and table: ``scheduler``, ``label``, ``family`` (with its arms), ``noise``,
    ``drift``, ``tasks``, ``table``, ``energy`` (over the oracle's), ``violations`` (share).
    """
    chunks = [range(i, min(i + TABLES_PER_JOB, tables)) for i in range(0, tables, TABLES_PER_JOB)]
    jobs = [(trial, chunk) for trial in trials for chunk in chunks]
    played = spread(_play, jobs, label="random tables", n_jobs=n_jobs)
    rows = [
        {
            "scheduler": trial.rule.label,
            "label": trial.label,
            "family": f"{trial.family} {trial.arms}",
            "noise": trial.noise,
            "drift": trial.drift,
            "tasks": trial.tasks,
            "table": seed,
            "energy": energy,
            "violations": violations,
        }
        for (trial, chunk), outcomes in zip(jobs, played, strict=True)
        for seed, (energy, violations) in zip(chunk, outcomes, strict=True)
    ]
    return pd.DataFrame(rows)


def summary(played: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Median, mean and worst tenth of the energy, and violations with a 95 % interval.

    Parameters
    ----------
    played
        Of ``play_all``.
    by
        Columns that make a row of the result.
    """
    rows = []
    for key, group in played.groupby(by, sort=False):
        mean, low, high = interval(group["energy"].to_numpy())
        share, least, most = interval(group["violations"].to_numpy())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "median": group["energy"].median(),
                "energy": mean,
                "energy_low": low,
                "energy_high": high,
                "worst_tenth": group["energy"].quantile(0.9),
                "violations": share,
                "violations_low": least,
                "violations_high": most,
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def each(
    base: Trial, variants: Mapping[str, Mapping[str, Any]], cases: Iterable[Mapping[str, Any]]
) -> list[Trial]:
    """A base trial, and every variant of it, in every case; both name what they change."""
    return [
        replace(base, **{**case, **changes, "label": label})
        for case in cases
        for label, changes in {"as it is": {}, **variants}.items()
    ]


def _play(trial: Trial, seeds: Iterable[int]) -> list[tuple[float, float]]:
    return [trial.play(seed) for seed in seeds]


def _slower(table: Table) -> Table:
    feasible = table.latency_s <= table.limit_s
    best = int(np.where(feasible, table.energy_j, np.inf).argmin())
    return table.with_slower(str(table.space[best].component), SLOWER)


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(2)


def _student(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(3, 2) / math.sqrt(3.0)
