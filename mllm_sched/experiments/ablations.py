"""All schedulers on random tables, and what each part of a scheduler brings there.

Energy over the oracle and true violations, over many tables (``random_tables.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mllm_sched.experiments.lineup import ADAPTIVE, PENALTY, SAFE
from mllm_sched.experiments.metrics import mean_interval
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.plots import scheduler_colour, titled
from mllm_sched.experiments.random_tables import (
    FAMILIES,
    Table,
)
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import Hyperparameters, make_scheduler

SLOWER = 1.35  # what a drift makes of the latency of the best arm's component


@dataclass(frozen=True)
class Trial:
    """One rule on the tables of one family.

    Attributes
    ----------
    rule
        Who chooses.
    family, arms
        Of ``FAMILIES``.
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
        mean, low, high = mean_interval(group["energy"].to_numpy())
        share, least, most = mean_interval(group["violations"].to_numpy())
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


PENALISED = {"penalty": PENALTY}

FIELD = [
    ADAPTIVE,
    SAFE,
    Rule("UCB + penalty", "ucb", PENALISED),
    Rule("Thompson + penalty", "thompson", PENALISED),
    Rule("Epsilon-greedy + penalty", "epsilon-greedy", PENALISED),
    Rule("Fixed at full power", "fixed"),
    Rule("SafeOpt", "safeopt"),
    Rule("StageOpt", "stageopt"),
    Rule("GoOSE", "goose"),
    Rule("Safe Thompson", "safe-thompson"),
    Rule("EdgeBOL", "edgebol"),
    Rule("Safe LinUCB", "safe-linucb"),
    Rule("Conformal 5 %", "conformal"),
    Rule("Conformal 0.5 %", "conformal", {"violation_rate": 0.005}),
    Rule("Risk budget", "risk-budget"),
    Rule("CONFIG", "config"),
    Rule("Primal-dual", "primal-dual"),
    Rule("Constrained UCB", "constrained-ucb"),
    Rule("Profile, then commit", "profile-then-commit"),
    Rule("Sliding-window UCB + penalty", "sliding-window-ucb", PENALISED),
    Rule("Discounted UCB + penalty", "discounted-ucb", PENALISED),
    Rule("EXP3 + penalty", "exp3", PENALISED),
    Rule("Safe GP-UCB, forgets", "safe-gp-ucb", {"forget_rate": 0.002}),
]

COMPARED_FAMILIES = (
    ("roofline", 48),
    ("rough", 48),
    ("queueing", 48),
    ("board", 60),
    ("published", 120),
)
KEPT_APART = COMPARED_FAMILIES[2:]  # while the adaptive rule was developed; the board only at first


def frontier_trials() -> list[Trial]:
    """Every rule on every family, as it is and with drift, at little noise."""
    return [
        Trial(rule, family, arms, drift=drift)
        for family, arms in COMPARED_FAMILIES
        for drift in (False, True)
        for rule in FIELD
    ]


def _with(**settings: Any) -> dict[str, Any]:
    return {"rule": Rule(ADAPTIVE.label, ADAPTIVE.name, settings)}


def _safe_with(**settings: Any) -> dict[str, Any]:
    return {"rule": Rule(SAFE.label, SAFE.name, settings)}


def _lengths(correlation: float, length_scale: float) -> dict[str, Hyperparameters]:
    """A kernel for three factors: components correlate so, power and load reach so far."""
    values = Hyperparameters(1.0, 0.05**2, (correlation, length_scale, length_scale))
    return {"energy_j": values, "latency_s": values}


PARTS = {  # of the adaptive rule
    "kernel not learned": _with(learn_kernel=False),
    "energy modelled, not power": _with(model_power=False),
    "change not noticed": _with(notice_change=False),
    "no budget of risk": _with(violation_rate=0.0),
    "budget 0.1 %": _with(violation_rate=0.001),
    "budget 2 %": _with(violation_rate=0.02),
    "certain to 95 %": _with(certainty=0.95),
    "certain to 99.95 %": _with(certainty=0.9995),
    "horizon 100": _with(horizon=100),
    "horizon 2000": _with(horizon=2000),
    "one trusted arm": {"seeds": 1},
}

CHOICES = {  # of the paper's rule, which leaves them open
    "beta 1": _safe_with(beta=1.0),
    "beta 9": _safe_with(beta=9.0),
    "outcomes, not their logs": {"raw": True},
    "one trusted arm": {"seeds": 1},
    "length-scale 0.2": _safe_with(hyperparameters=_lengths(0.5, 0.2)),
    "length-scale 2": _safe_with(hyperparameters=_lengths(0.5, 2.0)),
    "components alike": _safe_with(hyperparameters=_lengths(0.95, 1.0)),
    "forgets 0.0005 a task": _safe_with(forget_rate=0.0005),
    "forgets 0.002 a task": _safe_with(forget_rate=0.002),
    "forgets 0.01 a task": _safe_with(forget_rate=0.01),
}

WORLDS = {  # in which both are put
    "noise 1 %": {"noise": 0.01},
    "noise 15 %": {"noise": 0.15},
    "noise 50 %": {"noise": 0.5},
    "heavy tails, 15 %": {"noise": 0.15, "heavy": True},
    "100 tasks": {"tasks": 100},
    "2000 tasks": {"tasks": 2000},
}


def ablation_trials(
    rule: Rule,
    variants: Mapping[str, Mapping[str, Any]],
    families: Iterable[tuple[str, int]] = KEPT_APART,
) -> list[Trial]:
    """A rule and its variants on some families, as it is and with drift."""
    cases = [
        {"family": family, "arms": arms, "drift": drift}
        for family, arms in families
        for drift in (False, True)
    ]
    base = Trial(rule, "board", 60)
    return each(base, variants, cases)


# -- Figures

CASES = {False: ("as it is", "#444444"), True: ("with drift", "#9467bd")}  # no scheduler's colour
LEAST = 5e-5  # violations below this share are drawn at the edge


def frontier_of_rules(summary: pd.DataFrame, *, evidence: str) -> Figure:
    """Energy against violations of every rule; without and with drift, side by side.

    The line joins the rules that no other one beats on both. Numbers are ranks by energy.

    Parameters
    ----------
    summary
        Of ``summary`` by ``drift`` and ``scheduler``.
    """
    summary = summary.round(9)  # rules that are equal are told apart by no processor's last digits
    still = summary[~summary["drift"]].sort_values("energy", kind="stable")
    numbers = {str(name): place for place, name in enumerate(still["scheduler"], start=1)}
    figure, axes = plt.subplots(1, 2, figsize=(14, 6.2), sharey=True)
    for ax, (drift, group) in zip(axes, summary.groupby("drift"), strict=True):
        ax.set(xscale="log", yscale="log", xlim=(LEAST / 1.5, 1.0), ylim=(0.025, 15.0))
        for row in group.sort_values("energy", ascending=False, kind="stable").itertuples():
            at = (max(row.violations, LEAST), row.energy - 1.0)
            ax.plot(*at, "o", ms=15, color=scheduler_colour(row.scheduler), mec="white")
            number = str(numbers[row.scheduler])
            ax.text(*at, number, size=8, color="white", ha="center", va="center", weight="bold")
        line = group[_undominated(group)].sort_values("violations", kind="stable")
        shares = line["violations"].clip(lower=LEAST)
        ax.step(shares, line["energy"] - 1.0, where="post", color="0.7", lw=3, zorder=0)
        ax.xaxis.set_major_formatter(_percent)
        ax.yaxis.set_major_formatter(_percent)
        ax.minorticks_off()
        ax.set_xlabel("tasks on an arm beyond the limit (left edge: none)")
        titled(ax, "All rules, " + CASES[bool(drift)][0], evidence)
    axes[0].set_ylabel("energy beyond the oracle's, mean")
    for name, place in numbers.items():
        where = (1.04, 1.0 - (place - 0.5) / len(numbers))
        entry, colour = f"{place}  {name}", scheduler_colour(name)
        axes[1].text(*where, entry, size=9, color=colour, va="center", transform=axes[1].transAxes)
    return figure


def ablation(summary: pd.DataFrame, *, title: str, evidence: str) -> Figure:
    """Energy and violations of every variant, as it is and with drift, with 95 % intervals.

    Parameters
    ----------
    summary
        Of ``summary`` by ``label`` and ``drift``.
    """
    labels = list(dict.fromkeys(summary["label"]))
    height = 1.3 + 0.32 * len(labels)
    figure, axes = plt.subplots(1, 2, figsize=(10, height), sharey=True)
    for drift, (name, colour) in CASES.items():
        rows = summary[summary["drift"] == drift].set_index("label").loc[labels]
        places = np.arange(len(labels)) + (0.13 if drift else -0.13)
        for ax, quantity in zip(axes, ("energy", "violations"), strict=True):
            _intervals(ax, rows, quantity, places, colour, name)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter(_percent)
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("energy beyond the oracle's, mean")
    axes[1].set_xlabel("tasks on an arm beyond the limit")
    axes[1].xaxis.set_major_formatter(_percent)
    axes[1].legend(loc="best", fontsize="small")
    figure.suptitle(f"{title} ({evidence})", size="medium")
    return figure


def _intervals(
    ax: Axes, rows: pd.DataFrame, quantity: str, places: np.ndarray, colour: str, name: str
) -> None:
    value = rows[quantity]
    below, above = value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value
    value = value - 1.0 if quantity == "energy" else value
    ax.errorbar(value, places, xerr=[below, above], fmt="o", ms=5, color=colour, label=name)


@FuncFormatter
def _percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def _undominated(group: pd.DataFrame) -> np.ndarray:
    """Whether no other rule is better on one axis and no worse on the other."""
    energy, violations = group["energy"].to_numpy(), group["violations"].to_numpy()
    no_worse = (energy[None] <= energy[:, None]) & (violations[None] <= violations[:, None])
    better = no_worse & (
        (energy[None] < energy[:, None]) | (violations[None] < violations[:, None])
    )
    undominated: np.ndarray = ~better.any(axis=1)
    return undominated
