"""Other readings of the paper: each changes one choice that it left open.

An experiment is a function that computes the numbers of some claims; a reading gives it other
arguments. Notebook 13 judges every claim under each of its readings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import ORIN_POWER_LEVELS
from mllm_sched.devices import KnownDevice, Noise
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import (
    arm_landscape,
    savings,
    stability,
    strategy_costs,
)
from mllm_sched.experiments.comparison import compare, with_numbers_without_cpu
from mllm_sched.experiments.hyperparameters import NO_CPU
from mllm_sched.experiments.lineup import OURS, PENALTY, all_tasks, full_power_arms, transferred
from mllm_sched.experiments.runner import Rule
from mllm_sched.experiments.savings import DEFAULT_MIX, PlayedRuns, SavingsScenario
from mllm_sched.experiments.strategy_costs import Setting
from mllm_sched.experiments.time_varying import safe_under_change
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.tasks import Task

AS_IS, OTHER = "as it is", "other seeds"
OTHER_SEEDS = {"first_seed": 1000}  # those of the experiments begin at 0
RARE_SEEDS = 50  # of the board that changes, where a run in twenty decides
LIMITS_S = (0.06, 0.1, 0.2, 0.5, 60.0)  # of those of notebook 06, which some arm meets
ENCODER = "clip-vit-l14-336"
ALL_LEVELS = tuple(ORIN_POWER_LEVELS)
MARGINAL = {"accounting": "marginal"}
TENANTS = {"accounting": "tenants"}
NOISY = {"noise": Noise(0.08, 0.08)}
UCB = Rule("UCB", "ucb")
TEXTBOOK = Rule("UCB", "ucb", {"exploration": 1.0})
GP_UCB = Rule("UCB", "safe-gp-ucb", {"limits": {"latency_s": 1e6}})  # no limit to speak of


@dataclass(frozen=True)
class Experiment:
    """What some claims rest on, and how it may be read."""

    claims: tuple[str, ...]  # ids
    numbers: Callable[..., pd.DataFrame]  # computes their numbers, in the form of a ``claims.csv``
    readings: Mapping[str, Mapping[str, Any]]  # label: changed arguments of ``numbers``


def numbers(experiment: Experiment, reading: str) -> pd.DataFrame:
    """The numbers of an experiment under one of its readings, by ``key``."""
    return experiment.numbers(**experiment.readings[reading]).set_index("key")


def experiments(steps: int, seeds: int) -> list[Experiment]:
    """All experiments, with runs of so many steps and seeds."""
    stable = _stable(steps)
    at_levels = {**stable, "limit 0.3 s": {"limits_s": (0.3,)}}
    levels = [*((level,) for level in ORIN_POWER_LEVELS), ALL_LEVELS]
    sized: dict[str, Any] = {"steps": steps, "seeds": seeds}
    return [
        Experiment(SCHEDULING, partial(_scheduling, **sized), _choices(steps)),
        Experiment(("power-levels",), partial(_stability, levels=levels, **sized), at_levels),
        Experiment(("latency-limits",), partial(_stability, limits_s=LIMITS_S, **sized), stable),
        Experiment(("time-varying",), partial(_changing, seeds=5 * seeds), CHANGING),
        Experiment(("savings-year",), partial(_a_year, seeds=seeds), A_YEAR),
        Experiment(BOARD, _board, _boards()),
        Experiment(DECOUPLING, _decoupling, _settings()),
    ]


def _rules(
    device: KnownDevice,
    task: Task,
    *,
    ucb: Rule = UCB,
    epsilon: float = 0.1,
    baselines: Mapping[str, Any] | None = None,
    fitted: bool = True,
) -> list[Rule]:
    """Safe GP-UCB, what stands as UCB, and epsilon-greedy; ``baselines`` are settings of both."""
    models = {"hyperparameters": transferred(device, task, all_tasks())} if fitted else {}
    own = (baselines or {}) if ucb.name == "ucb" else models
    return [
        Rule(OURS, "safe-gp-ucb", models),
        replace(ucb, settings={**ucb.settings, **own}),
        Rule("Epsilon-greedy", "epsilon-greedy", {"epsilon": epsilon, **(baselines or {})}),
    ]


def _task(encoder: str) -> Task:
    return Task(encoder_modalities()[encoder], encoder)


# -- The comparison of the schedulers, notebook 04

SCHEDULING = ("energy-ucb", "energy-epsilon-greedy", "latency", "safety")


def _choices(steps: int) -> dict[str, dict[str, Any]]:
    """The choices of DEVIATIONS.md that a number could hang on."""
    return {
        AS_IS: {},
        "limit 0.1 s": {"limit_s": 0.1},
        "limit 0.5 s": {"limit_s": 0.5},
        "energy without idle power": {"board": MARGINAL},
        "energy with others' work": {"board": TENANTS},
        "five times the noise": {"board": NOISY},
        "baselines with a penalty": {"baselines": {"penalty": PENALTY}},
        "five times the penalty": {"baselines": {"penalty": 5 * PENALTY}},
        "UCB explores less (0.02)": {"ucb": Rule("UCB", "ucb", {"exploration": 0.02})},
        "UCB as in the textbook (1)": {"ucb": TEXTBOOK},
        "UCB on a Gaussian process": {"ucb": GP_UCB},
        "CONFIG in UCB's place": {"ucb": Rule("UCB", "config")},
        "epsilon 0.02": {"epsilon": 0.02},
        "default hyperparameters": {"fitted": False},
        "one trusted arm, on the GPU": {"trusted": ("gpu",)},
        "a fifth of the tasks": {"steps": steps // 5},
        "five times the tasks": {"steps": steps * 5},
        "clip-vit-b32, limit 0.04 s": {"encoder": "clip-vit-b32", "limit_s": 0.04},
        "whisper-small": {"encoder": "whisper-small"},
        "videomae-base": {"encoder": "videomae-base"},
        "resnet-50, limit 0.02 s": {"encoder": "resnet-50", "limit_s": 0.02},
        OTHER: OTHER_SEEDS,
    }


def _scheduling(
    steps: int,
    seeds: int,
    first_seed: int = 0,
    encoder: str = ENCODER,
    limit_s: float = 0.2,
    board: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = ("gpu", "dla"),
    **rules: Any,
) -> pd.DataFrame:
    """The numbers of notebook 04; ``rules`` are arguments of ``_rules``."""
    task, played = _task(encoder), []
    for components in ({}, {"components": NO_CPU}):
        settings = {**(board or {}), **components}
        device = SimulatedOrin(**settings)
        played.append(
            compare(
                *(device.name, task, _rules(device, task, **rules)),
                steps=steps,
                seeds=range(first_seed, first_seed + seeds),
                limit_s=limit_s,
                trusted=full_power_arms(device.space, trusted),
                device_settings=settings,
                n_jobs=1,
            )
        )
    return with_numbers_without_cpu(*played)


# -- Power levels and latency limits, notebooks 05 and 06


def _stable(steps: int) -> dict[str, dict[str, Any]]:
    return {
        AS_IS: {},
        "no CPU arms": {"board": {"components": NO_CPU}},
        "energy without idle power": {"board": MARGINAL},
        "energy with others' work": {"board": TENANTS},
        "five times the noise": {"board": NOISY},
        "UCB as in the textbook (1)": {"ucb": TEXTBOOK},
        "UCB on a Gaussian process": {"ucb": GP_UCB},
        "a fifth of the tasks": {"steps": steps // 5},
        "clip-vit-b32": {"encoder": "clip-vit-b32"},
        "whisper-small": {"encoder": "whisper-small"},
        OTHER: OTHER_SEEDS,
    }


def _stability(
    steps: int,
    seeds: int,
    first_seed: int = 0,
    encoder: str = ENCODER,
    limits_s: Sequence[float] = (0.2,),
    levels: Sequence[tuple[int, ...]] = (ALL_LEVELS,),
    board: Mapping[str, Any] | None = None,
    **rules: Any,
) -> pd.DataFrame:
    """The numbers of notebooks 05 and 06; limits are scaled by the least latency of the encoder."""
    task, played = _task(encoder), {}
    least, main = (
        SimulatedOrin().expected_all(one).latency_s.min() for one in (task, _task(ENCODER))
    )
    for limit_s, level in product(np.array(limits_s) * float(least / main), levels):
        settings = {**(board or {}), "power_levels": level}
        device = SimulatedOrin(**settings)
        if device.expected_all(task).latency_s.min() <= limit_s:
            played[f"{limit_s} s, {level} W"] = compare(
                *(device.name, task, _rules(device, task, **rules)),
                steps=steps,
                seeds=range(first_seed, first_seed + seeds),
                limit_s=limit_s,
                trusted=stability.trusted_within(device, task, limit_s),
                device_settings=settings,
                n_jobs=1,
            )
    return stability.claim_numbers(played)


# -- A board that changes, notebook 07

CHANGING: dict[str, dict[str, Any]] = {
    AS_IS: {},
    OTHER: {"seeds": RARE_SEEDS, **OTHER_SEEDS},
    "limit 0.2 s": {"limit_s": 0.2},
    "clip-vit-b32, limit 0.02 s": {"encoder": "clip-vit-b32", "limit_s": 0.02},
    "whisper-small": {"encoder": "whisper-small"},
    "half the tasks": {"steps": 400},
    "safe GP-UCB forgets": {"forget_rate": 0.002},
}


def _changing(
    seeds: int,
    first_seed: int = 0,
    limit_s: float = 0.1,
    encoder: str = ENCODER,
    steps: int = 800,
    **settings: float,
) -> pd.DataFrame:
    """The numbers of notebook 07; ``settings`` are the safe rule's."""
    chosen = range(first_seed, first_seed + seeds)
    return safe_under_change(_task(encoder), steps, chosen, limit_s, n_jobs=1, **settings)


# -- A year's bill, notebook 10

A_YEAR: dict[str, dict[str, Any]] = {
    AS_IS: {},
    OTHER: OTHER_SEEDS,
    "limit 0.1 s": {"limit_s": 0.1},
    "limit 0.5 s": {"limit_s": 0.5},
    "a task a day": {"tasks_per_day": 1.0},
    "a hundred tasks a day": {"tasks_per_day": 100.0},
    **{f"{name} alone": {"mix": {name: 1.0}} for name in DEFAULT_MIX},
    "energy without idle power": {"board": MARGINAL},
    "UCB as in the textbook (1)": {"rules": {"ucb": TEXTBOOK}},
    "epsilon 0.02": {"rules": {"epsilon": 0.02}},
}


def _a_year(
    seeds: int,
    first_seed: int = 0,
    board: Mapping[str, Any] | None = None,
    rules: Mapping[str, Any] | None = None,
    **scenario: Any,
) -> pd.DataFrame:
    """The numbers of notebook 10; ``rules`` are arguments of ``_rules``."""
    billed = SavingsScenario(**scenario)
    runs = savings.play(
        list(billed.mix),
        [billed.limit_s],
        seeds=seeds,
        first_seed=first_seed,
        board=board,
        rules=partial(_billed, **(rules or {})),
        n_jobs=1,
    )
    return savings.claim_numbers(savings.saved(billed, PlayedRuns(runs), OURS))


def _billed(device: KnownDevice, task: Task, **rules: Any) -> list[Rule]:
    return [*_rules(device, task, **rules), Rule("Fixed at full power", "fixed")]


# -- The board, notebook 02

BOARD = ("non-monotone", "pair-latency", "pair-energy", "dla-per-watt")


def _boards() -> dict[str, dict[str, Any]]:
    """What energy covers, and which encoder is looked at."""
    return {
        AS_IS: {},
        "energy without idle power": MARGINAL,
        "energy with others' work": TENANTS,
        **{f"{task.encoder} alone": {"encoder": task.encoder} for task in all_tasks()},
    }


def _board(accounting: str = "total", encoder: str = "") -> pd.DataFrame:
    """The numbers of notebook 02; the pair is that of the encoder, else of the main one."""
    device = SimulatedOrin(accounting=accounting)
    tasks = [task for task in all_tasks() if encoder in ("", task.encoder)]
    table = pd.concat([arm_landscape.arm_table(device, task) for task in tasks], ignore_index=True)
    pair = arm_landscape.paper_pair(device, tasks[0] if encoder else _task(ENCODER))
    ratio = arm_landscape.dla_over_gpu(table)
    return arm_landscape.claim_numbers(table, ratio, pair, evidence=device.evidence)


# -- The strategies of decoupling, notebook 01

DECOUPLING = ("strategies", "transmission", "encoding", "llm-on-server", "edge-against-remote")


def _settings() -> dict[str, dict[str, Any]]:
    """Link, answers, inputs, cut, and the type on the wire."""
    (_, base), *others = strategy_costs.variants(Setting())
    made = {label: {"setting": setting} for label, setting in others}
    return {AS_IS: {"setting": base}, **made, "int8 on the wire": {"int8": True}}


def _decoupling(setting: Setting | None = None, int8: bool = False) -> pd.DataFrame:
    """The numbers of notebook 01; with ``int8``, features in int8 stand as the claim's own."""
    table = strategy_costs.claim_numbers(setting or Setting()).set_index("key")
    if int8:
        table.loc["float16 against raw"] = table.loc["int8 against raw"]
        table.loc["transmission, float16"] = table.loc["transmission, int8"]
    return table.reset_index()
