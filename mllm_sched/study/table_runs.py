"""Schedulers on random tables: energy over the oracle and true violations, over many tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.schedulers import make_scheduler
from mllm_sched.study.families import FAMILIES, Table
from mllm_sched.study.metrics import interval
from mllm_sched.study.runner import Rule
from mllm_sched.study.spread import spread

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
        return self.play_both(seed)[self.drift]

    def play_both(self, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """The same without drift and with it, which share the half before it."""
        still = _Run(self, seed)
        still.play(self.tasks // 2)
        drifted = deepcopy(still)
        drifted.drift()
        for run in (still, drifted):
            run.play(self.tasks - self.tasks // 2)
        return still.outcome(), drifted.outcome()


class _Run:
    """A trial on one table, as far as it has come."""

    def __init__(self, trial: Trial, seed: int) -> None:
        table = FAMILIES[trial.family](seed, trial.arms)
        self.table, self.best_j = table, table.best_j()
        self.rng = np.random.default_rng([6, seed])
        self.draw = _student if trial.heavy else _normal
        self.spreads = np.array(table.noise_sds(trial.noise))
        # Units of the exponentials that a rule is told which models the outcomes themselves.
        self.limit_s = table.limit_s if trial.raw else None
        self.first_j = float(table.energy_j[table.trusted[0].index]) if trial.raw else None
        self.scheduler = make_scheduler(
            trial.rule.name,
            table.space,
            limits={"latency_s": _told(table.limit_s, self.limit_s)},
            seeds=table.trusted[: trial.seeds],
            rng=seed,
            **trial.rule.settings,
        )
        self.energies: list[float] = []
        self.violations: list[bool] = []

    def play(self, tasks: int) -> None:
        """Go on for so many tasks."""
        for _ in range(tasks):
            decision = self.scheduler.ask()
            arm, noise = decision.arm.index, self.spreads * self.draw(self.rng)
            latency_s = self.table.latency_s[arm] * math.exp(noise[0])
            energy_j = self.table.energy_j[arm] * math.exp(noise.sum())
            self.scheduler.tell(
                decision.id,
                latency_s=_told(latency_s, self.limit_s),
                energy_j=_told(energy_j, self.first_j),
            )
            self.energies.append(self.table.energy_j[arm] / self.best_j)
            self.violations.append(self.table.latency_s[arm] > self.table.limit_s)

    def drift(self) -> None:
        """The component of the best arm becomes slower."""
        self.table = _slower(self.table)
        self.best_j = self.table.best_j()

    def outcome(self) -> tuple[float, float]:
        """See ``Trial.play``."""
        return float(np.mean(self.energies)), float(np.mean(self.violations))


def _told(value: float, unit: float | None) -> float:
    """What a rule is told of a value: itself, or its exponential in some unit."""
    return value if unit is None else math.exp(value / unit - 1)


def play_all(trials: Iterable[Trial], tables: int, n_jobs: int | None = None) -> pd.DataFrame:
    """Every trial on so many tables, the same for all; see ``spread`` for where.

    Returns
    -------
    One row per trial and table: ``scheduler``, ``label``, ``family`` (with its arms), ``noise``,
    ``drift``, ``tasks``, ``table``, ``energy`` (over the oracle's), ``violations`` (share).
    """
    trials, still = list(trials), []  # the latter without drift, each once
    for trial in trials:
        if (alike := replace(trial, drift=False)) not in still:
            still.append(alike)
    jobs = [(trial, tables) for trial in still]
    played = spread(_play, jobs, label="random tables", n_jobs=n_jobs)
    rows = []
    for trial in trials:
        for seed, both in enumerate(played[still.index(replace(trial, drift=False))]):
            energy, violations = both[trial.drift]
            rows.append(
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
            )
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


def _play(trial: Trial, tables: int) -> list[tuple[tuple[float, float], ...]]:
    return [trial.play_both(seed) for seed in range(tables)]


def _slower(table: Table) -> Table:
    feasible = table.latency_s <= table.limit_s
    best = int(np.where(feasible, table.energy_j, np.inf).argmin())
    return table.with_slower(str(table.space[best].component), SLOWER)


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(2)


def _student(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(3, 2) / math.sqrt(3.0)
