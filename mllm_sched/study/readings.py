"""Other readings of the paper: every choice that it leaves open, made otherwise, one at a time.

A reading gives the numbers that some claims are judged by, in the form of a ``claims.csv``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from mllm_sched.devices import Noise
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.study import (
    landscape,
    savings_runs,
    savings_tables,
    sensitivity,
    stability,
    strategy_sensitivity,
    time_varying,
)
from mllm_sched.study.aftermath import CHANGES, CLAIMED, aftermath
from mllm_sched.study.lineup import transferred, trusted_arms
from mllm_sched.study.plots import OURS
from mllm_sched.study.runner import Rule
from mllm_sched.study.savings import saved
from mllm_sched.study.savings_curves import Played
from mllm_sched.study.savings_scenario import DEFAULT_MIX, Scenario
from mllm_sched.study.sensitivity import OTHER_SEEDS, Variant, all_tasks
from mllm_sched.study.strategy_costs import Setting

SCHEDULING = ("energy-ucb", "energy-epsilon-greedy", "latency", "safety")
BOARD = ("non-monotone", "pair-latency", "pair-energy", "dla-per-watt")
DECOUPLING = ("strategies", "transmission", "encoding", "llm-on-server", "edge-against-remote")
LIMITS_S = (0.06, 0.08, 0.1, 0.2, 1.0, 60.0)  # of notebook 06, for ``clip-vit-l14-336``


@dataclass(frozen=True)
class Reading:
    """One choice made otherwise.

    Attributes
    ----------
    label
        What is different; one that begins with "other seeds" changes nothing else.
    claims
        Ids of the claims that hang on it.
    numbers
        Computes their numbers; from a module's function, so that other processes can call it.
    """

    label: str
    claims: tuple[str, ...]
    numbers: Callable[[], pd.DataFrame]


def all_readings(steps: int, seeds: int) -> list[Reading]:
    """Those of all claims, each at most once per claim."""
    return [
        *scheduling(steps, seeds),
        *over_power_levels(steps, seeds),
        *over_limits(steps, seeds),
        *changing(seeds),
        *a_year(seeds),
        *board(),
        *decoupling(),
    ]


def scheduling(steps: int, seeds: int) -> list[Reading]:
    """The comparison of the schedulers."""
    return [
        Reading(variant.label, SCHEDULING, partial(sensitivity.numbers, variant, seeds))
        for variant in sensitivity.variants(steps)[1:]
    ]


def _stable(steps: int) -> list[Variant]:
    """What stability is asked of, beside the limit or the level."""
    base = Variant("", steps=steps)
    return [
        replace(base, label="other seeds", first_seed=OTHER_SEEDS),
        replace(base, label="no CPU arms", board={"components": sensitivity.NO_CPU}),
        replace(base, label="energy without idle power", board={"accounting": "marginal"}),
        replace(base, label="energy with others' work", board={"accounting": "tenants"}),
        replace(base, label="five times the noise", board={"noise": Noise(0.08, 0.08)}),
        replace(
            base, label="UCB as in the textbook (1)", ucb=Rule("UCB", "ucb", {"exploration": 1})
        ),
        replace(base, label="UCB on a Gaussian process", ucb=Rule("UCB", "config")),
        replace(base, label="a fifth of the tasks", steps=steps // 5),
        replace(base, label="clip-vit-b32", encoder="clip-vit-b32"),
        replace(base, label="whisper-small", encoder="whisper-small"),
    ]


def over_power_levels(steps: int, seeds: int) -> list[Reading]:
    """The comparison at each power level."""
    variants = _stable(steps)
    variants += [Variant("limit 0.3 s", limit_s=0.3, steps=steps)]
    return [Reading(v.label, ("power-levels",), partial(_power_levels, v, seeds)) for v in variants]


def over_limits(steps: int, seeds: int) -> list[Reading]:
    """The comparison at each latency limit."""
    return [
        Reading(v.label, ("latency-limits",), partial(_latency_limits, v, seeds))
        for v in _stable(steps)
    ]


def _power_levels(variant: Variant, seeds: int) -> pd.DataFrame:
    limit_s = variant.limit_s * _slowness(variant)
    return _stability(variant, stability.power_cases(limit_s, **variant.board), seeds)


def _latency_limits(variant: Variant, seeds: int) -> pd.DataFrame:
    limits_s = [limit * _slowness(variant) for limit in LIMITS_S]
    return _stability(variant, stability.limit_cases(limits_s, **variant.board), seeds)


def _slowness(variant: Variant) -> float:
    """Least latency of the encoder over that of the main one: limits are scaled by it."""
    board = SimulatedOrin()
    least = [board.expected_all(v.task()).latency_s.min() for v in (variant, Variant(""))]
    return float(least[0] / least[1])


def _stability(variant: Variant, cases: Sequence[stability.Case], seeds: int) -> pd.DataFrame:
    chosen = range(variant.first_seed, variant.first_seed + seeds)
    played = stability.play(
        cases, variant.task(), variant.steps, chosen, rules=variant.rules, n_jobs=1
    )
    return played.numbers()


def changing(seeds: int) -> list[Reading]:
    """The board that changes."""
    base = partial(_changing, seeds=seeds)
    readings = {
        "other seeds": partial(base, first_seed=OTHER_SEEDS),
        "limit 0.2 s": partial(base, limit_s=0.2),
        "clip-vit-b32, limit 0.02 s": partial(base, encoder="clip-vit-b32", limit_s=0.02),
        "whisper-small": partial(base, encoder="whisper-small"),
        "half the tasks": partial(base, steps=400),
        "safe GP-UCB forgets": partial(base, ours="forgets, "),
    }
    return [Reading(label, ("time-varying",), made) for label, made in readings.items()]


def _changing(
    seeds: int,
    first_seed: int = 0,
    limit_s: float = 0.1,
    encoder: str = "clip-vit-l14-336",
    steps: int = 800,
    ours: str = "",
) -> pd.DataFrame:
    """The numbers of notebook 07; ``ours`` says which rule stands as the paper's."""
    board, task = SimulatedOrin(), Variant("", encoder=encoder).task()
    chosen = [scene for scene in time_varying.scenarios(steps) if scene.label in CHANGES]
    rules = time_varying.lineup(transferred(board, task, all_tasks()))
    played = time_varying.play(
        chosen,
        [rule for rule in rules if rule.label in CLAIMED.values()],
        task,
        steps,
        range(first_seed, first_seed + seeds),
        limit_s=limit_s,
        trusted=trusted_arms(board),
        n_jobs=1,
    )
    numbers = aftermath(played, chosen).claim_numbers(board.evidence)
    asked, worst = "violations after a change, worst", f"violations after a change, {ours}worst"
    return _standing_in(numbers, {asked: worst})


def a_year(seeds: int) -> list[Reading]:
    """The calculator, with other inputs."""
    base = partial(_a_year, seeds=seeds)
    readings = {
        "other seeds": partial(base, first_seed=OTHER_SEEDS),
        "limit 0.1 s": partial(base, limit_s=0.1),
        "limit 0.5 s": partial(base, limit_s=0.5),
        "a task a day": partial(base, tasks_per_day=1.0),
        "a hundred tasks a day": partial(base, tasks_per_day=100.0),
        **{f"{name} alone": partial(base, mix={name: 1.0}) for name in DEFAULT_MIX},
    }
    return [Reading(label, ("savings-year",), made) for label, made in readings.items()]


def _a_year(seeds: int, first_seed: int = 0, **changes: Any) -> pd.DataFrame:
    """The numbers of notebook 10."""
    scenario = Scenario(**changes)
    runs = savings_runs.play(
        list(scenario.mix), [scenario.limit_s], seeds=seeds, first_seed=first_seed, n_jobs=1
    )
    return savings_tables.claim_numbers(saved(scenario, Played(runs), OURS))


def board() -> list[Reading]:
    """The board: what energy covers, and which encoder is looked at."""
    readings = [
        Reading("energy without idle power", BOARD, partial(_board, "marginal")),
        Reading("energy with others' work", BOARD, partial(_board, "tenants")),
    ]
    for task in all_tasks():
        label = f"{task.encoder} alone"
        readings.append(Reading(label, BOARD, partial(_board, "total", task.encoder)))
    return readings


def _board(accounting: str, encoder: str = "") -> pd.DataFrame:
    """The numbers of notebook 02; the pair is that of the encoder, else of the main one."""
    device = SimulatedOrin(accounting=accounting)
    tasks = [task for task in all_tasks() if encoder in ("", task.encoder)]
    table = pd.concat([landscape.arm_table(device, task) for task in tasks], ignore_index=True)
    pair = landscape.paper_pair(device, tasks[0] if encoder else Variant("").task())
    counted = landscape.count_reversals(table, ["power_w", "load"])
    ratio = landscape.dla_over_gpu(table)
    return landscape.claim_numbers(counted, ratio, pair, evidence=device.evidence)


def decoupling() -> list[Reading]:
    """The strategies: link, answers, inputs, cut, and the type on the wire."""
    variants = list(strategy_sensitivity.variants(Setting()))[1:]
    readings = [
        Reading(label, DECOUPLING, partial(strategy_sensitivity.claim_numbers, setting))
        for label, setting in variants
    ]
    return [*readings, Reading("int8 on the wire", DECOUPLING, _int8)]


def _int8() -> pd.DataFrame:
    """Features in int8 stand as the claim's own."""
    pairs = {"float16 against raw": "int8 against raw"}
    pairs |= {"transmission, float16": "transmission, int8"}
    return _standing_in(strategy_sensitivity.claim_numbers(), pairs)


def _standing_in(numbers: pd.DataFrame, pairs: dict[str, str]) -> pd.DataFrame:
    """Numbers in which one stands in for another: asked for, and given."""
    table = numbers.set_index("key")
    for asked, given in pairs.items():
        table.loc[asked] = table.loc[given]
    return table.reset_index()
