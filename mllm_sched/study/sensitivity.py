"""The comparison of the schedulers, otherwise made: one choice that the paper left open changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mllm_sched.devices import KnownDevice, Noise
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.study.comparison import Comparison, compare
from mllm_sched.study.hyperparameters import NO_CPU as NO_CPU
from mllm_sched.study.hyperparameters import all_tasks as all_tasks
from mllm_sched.study.hyperparameters import transferred
from mllm_sched.study.lineup import PENALTY, full_power_arms
from mllm_sched.study.plots import OURS
from mllm_sched.study.runner import Rule
from mllm_sched.tasks import Task

UCB = Rule("UCB", "ucb")
GP_UCB = Rule("UCB", "safe-gp-ucb", {"limits": {"latency_s": 1e6}})  # no limit to speak of
OTHER_SEEDS = 1000  # where they begin; those of the experiments begin at 0


@dataclass(frozen=True)
class Variant:
    """One way to make the comparison on the simulated board.

    Attributes
    ----------
    label
        What is different.
    encoder, limit_s, steps, first_seed
        The task, its latency limit in seconds, how many, and where seeds begin.
    board
        Further arguments of the simulated board.
    trusted
        Components whose full-power arm is trusted.
    baselines
        Settings of UCB and epsilon-greedy, and of each of them alone.
    ucb
        The rule that stands as UCB.
    fitted
        Whether the Gaussian processes take fitted hyperparameters, or the defaults.
    """

    label: str
    encoder: str = "clip-vit-l14-336"
    limit_s: float = 0.2
    steps: int = 1000
    first_seed: int = 0
    board: Mapping[str, Any] = field(default_factory=dict)
    trusted: Sequence[str] = ("gpu", "dla")
    baselines: Mapping[str, Any] = field(default_factory=dict)
    ucb: Rule = UCB
    epsilon: float = 0.1
    fitted: bool = True

    def task(self) -> Task:
        """What is scheduled."""
        return Task(encoder_modalities()[self.encoder], self.encoder)

    def rules(self, device: KnownDevice) -> list[Rule]:
        """Safe GP-UCB, and what stands as its baselines."""
        models = {}
        if self.fitted:
            models = {"hyperparameters": transferred(device, self.task(), all_tasks())}
        ucb = {**self.ucb.settings, **(self.baselines if self.ucb.name == "ucb" else models)}
        greedy = {"epsilon": self.epsilon, **self.baselines}
        return [
            Rule(OURS, "safe-gp-ucb", models),
            replace(self.ucb, settings=ucb),
            Rule("Epsilon-greedy", "epsilon-greedy", greedy),
        ]


def variants(steps: int = 1000) -> list[Variant]:
    """The choices of DEVIATIONS.md that a number could hang on, one changed at a time."""
    base = Variant("as it is", steps=steps)

    def other(label: str, **changes: Any) -> Variant:
        return replace(base, label=label, **changes)

    return [
        base,
        other("limit 0.1 s", limit_s=0.1),
        other("limit 0.5 s", limit_s=0.5),
        other("energy without idle power", board={"accounting": "marginal"}),
        other("energy with others' work", board={"accounting": "tenants"}),
        other("five times the noise", board={"noise": Noise(0.08, 0.08)}),
        other("baselines with a penalty", baselines={"penalty": PENALTY}),
        other("five times the penalty", baselines={"penalty": 5 * PENALTY}),
        other("UCB explores less (0.02)", ucb=Rule("UCB", "ucb", {"exploration": 0.02})),
        other("UCB as in the textbook (1)", ucb=Rule("UCB", "ucb", {"exploration": 1.0})),
        other("UCB on a Gaussian process", ucb=GP_UCB),
        other("CONFIG in UCB's place", ucb=Rule("UCB", "config")),
        other("epsilon 0.02", epsilon=0.02),
        other("default hyperparameters", fitted=False),
        other("one trusted arm, on the GPU", trusted=("gpu",)),
        other("a fifth of the tasks", steps=steps // 5),
        other("five times the tasks", steps=steps * 5),
        other("clip-vit-b32, limit 0.04 s", encoder="clip-vit-b32", limit_s=0.04),
        other("whisper-small", encoder="whisper-small"),
        other("videomae-base", encoder="videomae-base"),
        other("resnet-50, limit 0.02 s", encoder="resnet-50", limit_s=0.02),
    ]


def play(variant: Variant, seeds: int, n_jobs: int | None = None) -> Comparison:
    """The comparison as the variant makes it."""
    device = SimulatedOrin(**variant.board)
    return compare(
        device.name,
        variant.task(),
        variant.rules(device),
        steps=variant.steps,
        seeds=range(variant.first_seed, variant.first_seed + seeds),
        limit_s=variant.limit_s,
        trusted=full_power_arms(device.space, variant.trusted),
        device_settings=variant.board,
        n_jobs=n_jobs,
        label=variant.label,
    )


def without_cpu(variant: Variant) -> Variant:
    """The same on a board whose CPU cannot be chosen."""
    board = {**variant.board, "components": NO_CPU}
    return replace(variant, label=f"{variant.label}, no CPU arms", board=board)


def claim_numbers(played: Comparison, without: Comparison) -> pd.DataFrame:
    """The numbers that claims refer to.

    Parameters
    ----------
    played
        The comparison.
    without
        The same without the CPU's arms.
    """
    numbers = without.numbers()
    numbers["key"] = "no CPU arms, " + numbers["key"]
    return pd.concat([played.numbers(), numbers], ignore_index=True)


def numbers(variant: Variant, seeds: int, no_cpu_seeds: int = 0) -> pd.DataFrame:
    """The numbers that claims refer to, as the variant has them; in one process."""
    without = play(without_cpu(variant), no_cpu_seeds or seeds, 1)
    return claim_numbers(play(variant, seeds, 1), without)
