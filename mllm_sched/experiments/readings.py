"""Does a verdict hang on a choice that the paper left open? Every claim under every reading.

A reading changes one choice and gives the numbers that some claims are judged by, in the form of a
``claims.csv``. The readings of one experiment form a group, with the experiment as it is at its
head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mllm_sched.devices import KnownDevice, Noise
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import (
    arm_landscape,
    comparison,
    savings,
    stability,
    strategy_costs,
)
from mllm_sched.experiments.claims import load_claims
from mllm_sched.experiments.comparison import OTHER_SEEDS, Variant, all_tasks
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.plots import OURS, titled
from mllm_sched.experiments.runner import Rule
from mllm_sched.experiments.savings import DEFAULT_MIX, PlayedRuns, SavingsScenario
from mllm_sched.experiments.strategy_costs import Setting
from mllm_sched.experiments.time_varying import safe_under_change
from mllm_sched.tasks import Task

COLOURS = {"reproduced": "#029e73", "partly": "#ece133", "not reproduced": "#d55e00"}


def under(
    groups: Sequence[Sequence[PaperReading]], n_jobs: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every claim under each of its readings.

    A reading that leaves every number as it is cannot change a verdict, and is not counted.

    Parameters
    ----------
    groups
        Of ``all_readings``: each begins with its experiment as it is.

    Returns
    -------
    The verdicts: ``id``, ``reading``, ``verdict``. And the numbers behind them: ``experiment``
    (its first claim), ``reading``, ``key``, ``value``, ``low``, ``high``, ``n``.
    """
    jobs = [(reading,) for group in groups for reading in group]
    done = iter(spread(_numbers, jobs, label="readings", n_jobs=n_jobs))
    verdicts, tables = [], []
    for group in groups:
        base, *others = numbers = [next(done) for _ in group]
        for reading, table in zip(group[1:], others, strict=True):
            verdicts += [(*row, reading.label) for row in _judged(reading, table, base)]
        for reading, table in zip(group, numbers, strict=True):
            label = {"experiment": reading.claims[0], "reading": reading.label}
            tables.append(table.reset_index().drop(columns="evidence").assign(**label))
    judged = pd.DataFrame(verdicts, columns=["id", "verdict", "reading"])
    return judged[["id", "reading", "verdict"]], pd.concat(tables, ignore_index=True)


def _numbers(reading: PaperReading) -> pd.DataFrame:
    return reading.numbers().set_index("key")


def _judged(
    reading: PaperReading, numbers: pd.DataFrame, base: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """Verdicts on the claims whose numbers the reading moves."""
    claims = {claim.id: claim for claim in load_claims()}
    for name in reading.claims:
        keys = [test.key for test in claims[name].tests]
        if not np.allclose(numbers.loc[keys, "value"], base.loc[keys, "value"], rtol=1e-9, atol=0):
            yield name, claims[name].verdict(numbers)


def shares(verdicts: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    """How many readings give which verdict: a row a claim, with its own verdict in front.

    Parameters
    ----------
    verdicts
        Of ``under``.
    own
        The claims' own verdicts, by id.
    """
    counts = verdicts.groupby(["id", "verdict"]).size().unstack(fill_value=0)
    judged = [name for name in own.index if name in counts.index]
    counts = counts.reindex(index=judged, columns=list(COLOURS), fill_value=0)
    counts.insert(0, "own verdict", own.loc[judged])
    return counts


def verdict_bars(counts: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Readings by verdict, one bar a claim; its own verdict is outlined.

    Parameters
    ----------
    counts
        Of ``shares``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 0.42 * len(counts) + 1.4))[1]
    places, left = np.arange(len(counts))[::-1], np.zeros(len(counts))
    for verdict, colour in COLOURS.items():
        width = counts[verdict].to_numpy()
        own = (counts["own verdict"] == verdict).to_numpy()
        for some, edge in ((~own, "white"), (own, "black")):
            shown = some & (width > 0)
            bars = ax.barh(places[shown], width[shown], left=left[shown], color=colour)
            plt.setp(bars.patches, edgecolor=edge, linewidth=1.6)
            ax.bar_label(bars, label_type="center", size="small")
        left += width
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_yticks(places, list(counts.index))
    ax.set(xlabel="readings; the claim's own verdict is outlined")
    ax.grid(axis="y", visible=False)
    names = [Patch(color=colour, label=verdict) for verdict, colour in COLOURS.items()]
    ax.legend(handles=names, loc="lower right", frameon=True)
    return titled(ax, "Verdicts under other readings of the paper", evidence)


Numbers = Callable[[], pd.DataFrame]
SCHEDULING = ("energy-ucb", "energy-epsilon-greedy", "latency", "safety")
BOARD = ("non-monotone", "pair-latency", "pair-energy", "dla-per-watt")
DECOUPLING = ("strategies", "transmission", "encoding", "llm-on-server", "edge-against-remote")
AS_IS, OTHER = "as it is", "other seeds"
RARE_SEEDS = 50  # other ones for the board that changes, where a run in twenty decides
LIMITS_S = (0.06, 0.1, 0.2, 0.5, 60.0)  # of those of notebook 06, which some arm meets
MARGINAL = {"accounting": "marginal"}
NOISY = {"noise": Noise(0.08, 0.08)}
MAIN = Variant("")
TEXTBOOK = Rule("UCB", "ucb", {"exploration": 1.0})


@dataclass(frozen=True)
class PaperReading:
    """One choice made otherwise.

    Attributes
    ----------
    label
        What is different; ``AS_IS`` at the head of a group, ``OTHER`` for other seeds alone.
    claims
        Ids of the claims that hang on it.
    numbers
        Computes their numbers; from a module's function, so that other processes can call it.
    """

    label: str
    claims: tuple[str, ...]
    numbers: Numbers


def all_readings(steps: int, seeds: int) -> list[list[PaperReading]]:
    """Those of all claims, a list for each experiment."""
    return [
        scheduling(steps, seeds),
        over_power_levels(steps, seeds),
        over_limits(steps, seeds),
        changing(seeds),
        a_year(seeds),
        board(),
        decoupling(),
    ]


def _group(claims: Sequence[str], made: Mapping[str, Numbers]) -> list[PaperReading]:
    return [PaperReading(label, tuple(claims), numbers) for label, numbers in made.items()]


def scheduling(steps: int, seeds: int) -> list[PaperReading]:
    """The comparison of the schedulers."""
    base, *others = comparison.variants(steps)
    variants = [*others, replace(base, label=OTHER, first_seed=OTHER_SEEDS)]
    made = {variant.label: partial(comparison.numbers, variant, seeds) for variant in variants}
    return _group(SCHEDULING, {AS_IS: partial(comparison.numbers, base, seeds), **made})


def _stable(steps: int) -> list[Variant]:
    """What stability is asked of, beside the limit or the level."""
    base = Variant(AS_IS, steps=steps)
    return [
        base,
        replace(base, label="no CPU arms", board={"components": comparison.NO_CPU}),
        replace(base, label="energy without idle power", board=MARGINAL),
        replace(base, label="energy with others' work", board={"accounting": "tenants"}),
        replace(base, label="five times the noise", board=NOISY),
        replace(base, label="UCB as in the textbook (1)", ucb=TEXTBOOK),
        replace(base, label="UCB on a Gaussian process", ucb=comparison.GP_UCB),
        replace(base, label="a fifth of the tasks", steps=steps // 5),
        replace(base, label="clip-vit-b32", encoder="clip-vit-b32"),
        replace(base, label="whisper-small", encoder="whisper-small"),
        replace(base, label=OTHER, first_seed=OTHER_SEEDS),
    ]


def over_power_levels(steps: int, seeds: int) -> list[PaperReading]:
    """The comparison at each power level."""
    variants = [*_stable(steps), Variant("limit 0.3 s", limit_s=0.3, steps=steps)]
    made = {variant.label: partial(_power_levels, variant, seeds) for variant in variants}
    return _group(["power-levels"], made)


def over_limits(steps: int, seeds: int) -> list[PaperReading]:
    """The comparison at each latency limit."""
    made = {variant.label: partial(_latency_limits, variant, seeds) for variant in _stable(steps)}
    return _group(["latency-limits"], made)


def _power_levels(variant: Variant, seeds: int) -> pd.DataFrame:
    limit_s = variant.limit_s * _slowness(variant)
    return _stability(variant, stability.power_cases(limit_s, **variant.board), seeds)


def _latency_limits(variant: Variant, seeds: int) -> pd.DataFrame:
    slowness = _slowness(variant)
    limits_s = [limit * slowness for limit in LIMITS_S]
    return _stability(variant, stability.limit_cases(limits_s, **variant.board), seeds)


def _slowness(variant: Variant) -> float:
    """Least latency of the encoder over that of the main one: limits are scaled by it."""
    least = [SimulatedOrin().expected_all(v.task()).latency_s.min() for v in (variant, MAIN)]
    return float(least[0] / least[1])


def _stability(variant: Variant, cases: Sequence[stability.Case], seeds: int) -> pd.DataFrame:
    chosen = range(variant.first_seed, variant.first_seed + seeds)
    played = stability.play(
        cases, variant.task(), variant.steps, chosen, rules=variant.rules, n_jobs=1
    )
    return played.numbers()


def changing(seeds: int) -> list[PaperReading]:
    """The board that changes; a run in twenty decides, so there are more of them."""
    base = partial(_changing, seeds=5 * seeds)
    made = {
        AS_IS: base,
        OTHER: partial(_changing, RARE_SEEDS, first_seed=OTHER_SEEDS),
        "limit 0.2 s": partial(base, limit_s=0.2),
        "clip-vit-b32, limit 0.02 s": partial(base, encoder="clip-vit-b32", limit_s=0.02),
        "whisper-small": partial(base, encoder="whisper-small"),
        "half the tasks": partial(base, steps=400),
        "safe GP-UCB forgets": partial(base, forget_rate=0.002),
    }
    return _group(["time-varying"], made)


def _changing(
    seeds: int,
    first_seed: int = 0,
    limit_s: float = 0.1,
    encoder: str = "clip-vit-l14-336",
    steps: int = 800,
    **settings: float,
) -> pd.DataFrame:
    """The numbers of notebook 07; ``settings`` are the safe rule's."""
    task, chosen = Variant("", encoder=encoder).task(), range(first_seed, first_seed + seeds)
    return safe_under_change(task, steps, chosen, limit_s, n_jobs=1, **settings)


def a_year(seeds: int) -> list[PaperReading]:
    """The calculator, with other inputs."""
    base = partial(_a_year, seeds=seeds)
    made = {
        AS_IS: base,
        OTHER: partial(base, first_seed=OTHER_SEEDS),
        "limit 0.1 s": partial(base, limit_s=0.1),
        "limit 0.5 s": partial(base, limit_s=0.5),
        "a task a day": partial(base, tasks_per_day=1.0),
        "a hundred tasks a day": partial(base, tasks_per_day=100.0),
        **{f"{name} alone": partial(base, mix={name: 1.0}) for name in DEFAULT_MIX},
        "energy without idle power": partial(base, variant=Variant("", board=MARGINAL)),
        "UCB as in the textbook (1)": partial(base, variant=Variant("", ucb=TEXTBOOK)),
        "epsilon 0.02": partial(base, variant=Variant("", epsilon=0.02)),
    }
    return _group(["savings-year"], made)


def _a_year(
    seeds: int, first_seed: int = 0, variant: Variant = MAIN, **changes: Any
) -> pd.DataFrame:
    """The numbers of notebook 10."""
    scenario = SavingsScenario(**changes)
    runs = savings.play(
        list(scenario.mix),
        [scenario.limit_s],
        seeds=seeds,
        first_seed=first_seed,
        board=variant.board,
        rules=partial(_billed_rules, variant),
        n_jobs=1,
    )
    return savings.claim_numbers(savings.saved(scenario, PlayedRuns(runs), OURS))


def _billed_rules(variant: Variant, device: KnownDevice, task: Task) -> list[Rule]:
    own = replace(variant, encoder=task.encoder)
    return [*own.rules(device), Rule("Fixed at full power", "fixed")]


def board() -> list[PaperReading]:
    """The board: what energy covers, and which encoder is looked at."""
    made = {
        AS_IS: partial(_board, "total"),
        "energy without idle power": partial(_board, "marginal"),
        "energy with others' work": partial(_board, "tenants"),
    }
    made |= {
        f"{task.encoder} alone": partial(_board, "total", task.encoder) for task in all_tasks()
    }
    return _group(BOARD, made)


def _board(accounting: str, encoder: str = "") -> pd.DataFrame:
    """The numbers of notebook 02; the pair is that of the encoder, else of the main one."""
    device = SimulatedOrin(accounting=accounting)
    tasks = [task for task in all_tasks() if encoder in ("", task.encoder)]
    table = pd.concat([arm_landscape.arm_table(device, task) for task in tasks], ignore_index=True)
    pair = arm_landscape.paper_pair(device, tasks[0] if encoder else MAIN.task())
    ratio = arm_landscape.dla_over_gpu(table)
    return arm_landscape.claim_numbers(table, ratio, pair, evidence=device.evidence)


def decoupling() -> list[PaperReading]:
    """The strategies: link, answers, inputs, cut, and the type on the wire."""
    (_, base), *others = strategy_costs.variants(Setting())
    made = {AS_IS: partial(strategy_costs.claim_numbers, base)}
    made |= {label: partial(strategy_costs.claim_numbers, made) for label, made in others}
    return _group(DECOUPLING, {**made, "int8 on the wire": _int8})


def _int8() -> pd.DataFrame:
    """Features in int8 stand as the claim's own."""
    numbers = strategy_costs.claim_numbers().set_index("key")
    numbers.loc["float16 against raw"] = numbers.loc["int8 against raw"]
    numbers.loc["transmission, float16"] = numbers.loc["transmission, int8"]
    return numbers.reset_index()
