"""A board that changes while it works: who notices, how fast, and at what cost.

``play`` runs the scenarios, ``aftermath`` says what each run took from the change on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, PercentFormatter

from mllm_sched.arms import Arm
from mllm_sched.devices import Background, Drift, Expected, Outage, Throttling
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import metrics
from mllm_sched.experiments.lineup import PENALTY, all_tasks, transferred, trusted_arms
from mllm_sched.experiments.metrics import highest, mean_interval
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.plots import OURS, dashes, scheduler_colour, titled
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.schedulers import Hyperparameters, Scheduler
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

SEEDS_PER_JOB = 2


@dataclass(frozen=True)
class ChangeScenario:
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


def scenarios(steps: int) -> list[ChangeScenario]:
    """All that happens to the board, as shares of a run of so many tasks."""
    half, back, quarter = steps // 2, steps * 4 // 5, steps // 4
    hot = Throttling(ambient_c=55.0, tau_s=5.0, slowdown_per_k=0.012, start=half)
    slowly = {"drift": [Drift("dla", 1.35, half, quarter)]}
    outage, told = Outage("dla", half, back), Outage("dla", half, back, announced=True)
    return [
        ChangeScenario("nothing changes", {}, half, steps),
        ChangeScenario("DLA 35 % slower", {"drift": [Drift("dla", 1.35, half)]}, half, steps),
        ChangeScenario("the same, slowly", slowly, half, steps, full=half + quarter),
        ChangeScenario("heat", {"throttling": hot}, half, steps),
        ChangeScenario("other work", {"background": [Background(0.2, half, back)]}, half, back),
        ChangeScenario("DLA fails", {"outages": [outage]}, half, back),
        ChangeScenario("DLA out, announced", {"outages": [told]}, half, back),
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


def effects(chosen: Sequence[ChangeScenario], task: Task, limit_s: float) -> pd.DataFrame:
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
    chosen: Sequence[ChangeScenario],
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
    chosen: Sequence[ChangeScenario],
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
    chosen: Sequence[ChangeScenario],
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


def aftermath(played: pd.DataFrame, chosen: Sequence[ChangeScenario]) -> Aftermath:
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
                rows.append((*key, quantity, *mean_interval(values), len(values)))
    columns = ["scenario", "scheduler", "quantity", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


# -- Figures

COLUMNS = 4  # panels in a row; the legend takes the place after the last
CUT = 1.6  # times the oracle's energy, where its axis ends


def over_time(
    played: pd.DataFrame,
    chosen: Sequence[ChangeScenario],
    quantity: str,
    *,
    ylabel: str,
    title: str,
    evidence: str,
) -> Figure:
    """A quantity over the tasks of a run, a panel a scenario; dotted lines mark the change.

    Parameters
    ----------
    played
        Of ``time_varying.play``.
    quantity
        Column of it, averaged over blocks of tasks and over seeds. ``beyond`` is a share; all
        others are multiples of the oracle's, and the axis ends at 1.6.
    """
    rows = len(chosen) // COLUMNS + 1
    steps = int(played["step"].max()) + 1
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(14.5, 3.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, scenario in zip(axes.flat, chosen, strict=False):
        part = played[played["scenario"] == scenario.label].reset_index(drop=True)
        curves = metrics.curves(part, part[quantity].astype(float), points=40)
        for name, line in curves.groupby("scheduler", observed=True, sort=False):
            label = str(name)
            colour, style = scheduler_colour(label), dashes(label)
            on_top = 3 if "safe" in label.lower() else 2
            ax.plot(line["step"], line["value"], style, color=colour, label=label, zorder=on_top)
            ax.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        for mark in scenario.marks(steps):
            ax.axvline(mark, color="0.3", ls=(0, (1, 2)), lw=1.4)
        ax.set(title=scenario.label, xlim=(0, steps))
    if quantity == "beyond":
        axes[0, 0].set_ylim(-0.02, 1.02)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes[0, 0].set_ylim(0.97, CUT)
        axes[0, 0].yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    for place, ax in enumerate(axes.flat):
        last = place + COLUMNS >= len(chosen)
        ax.set(ylabel=ylabel if place % COLUMNS == 0 else "", xlabel="tasks" if last else "")
        ax.tick_params(labelbottom=last)
        if place >= len(chosen):
            ax.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes.flat[len(chosen)].legend(handles, labels, loc="center", frameon=False)
    figure.suptitle(f"{title} ({evidence})", size="large")
    return figure


def who_notices(after: Aftermath, *, evidence: str) -> Figure:
    """Tasks beyond the limit and energy, a cell a rule and scenario; darker is worse."""
    shares, energy = after.wide("violations"), after.wide("energy_over_oracle")
    figure, axes = plt.subplots(1, 2, figsize=(15, 1.6 + 0.42 * len(shares)), sharey=True)
    text = (100 * shares).map(lambda share: f"{share:.1f} %")
    shade = np.log10(shares.clip(lower=1e-3))
    options = {"fmt": "", "cmap": "rocket_r", "cbar": False, "linewidths": 1}
    sns.heatmap(shade, annot=text, vmin=-3, vmax=0.3, ax=axes[0], **options)
    text = energy.map(lambda ratio: f"{ratio:.2f}x")
    shade = np.log10((energy - 1.0).clip(lower=1e-2))
    sns.heatmap(shade, annot=text, vmin=-2, vmax=1.5, ax=axes[1], **options)
    for ax in axes:
        ax.set(xlabel="", ylabel="")
        ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), rotation=25, ha="right")
    titled(axes[0], "Tasks beyond the limit from the change on", evidence)
    titled(axes[1], "Energy over the oracle's from the change on", evidence)
    return figure
