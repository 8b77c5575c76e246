"""The comparison of the schedulers: on the simulated board, on a replayed table, and live.

``Variant`` is the same comparison with one choice changed that the paper left open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Device, KnownDevice, Noise, open_device
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.experiments import metrics
from mllm_sched.experiments.hyperparameters import NO_CPU as NO_CPU
from mllm_sched.experiments.hyperparameters import all_tasks as all_tasks
from mllm_sched.experiments.hyperparameters import transferred
from mllm_sched.experiments.lineup import OURS, PENALTY, full_power_arms, paper_lineup
from mllm_sched.experiments.parallel import release_workers
from mllm_sched.experiments.runner import Rule, RunStopped, run, sweep
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.tasks import Task

SHOWN = [
    *("energy_j", "energy_over_oracle", "latency_s"),
    *("violations", "observed_violations", "regret_j", "switches"),
]


@dataclass(frozen=True)
class Comparison:
    """Runs of several schedulers on the same tasks, and what is said of them.

    Attributes
    ----------
    table
        Of ``run`` or ``sweep``.
    limits
        As the schedulers had them.
    evidence
        What the numbers are.
    settings
        What was compared, for the record.
    """

    table: pd.DataFrame
    limits: Mapping[str, float]
    evidence: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per scheduler and seed."""
        return metrics.per_run(self.table, self.limits)

    @cached_property
    def late_runs(self) -> pd.DataFrame:
        """The same over the second half of the tasks, when every rule has had time to learn."""
        steps = int(self.table["step"].max()) + 1
        return metrics.per_run(self.table, self.limits, start=steps // 2)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Means over seeds with their intervals, long; see ``metrics.summarise``."""
        return metrics.summarise(self.runs)

    def overview(self) -> pd.DataFrame:
        """Means over seeds, one row per scheduler."""
        wide = self.summary.pivot(index="scheduler", columns="quantity", values="value")
        return wide[SHOWN]

    @cached_property
    def savings(self) -> pd.DataFrame:
        """How much less safe GP-UCB takes than every other scheduler, paired by seed.

        Columns ``what`` (energy, latency; late: over the second half), ``scheduler``, ``value``,
        ``low``, ``high``, ``n``.
        """
        parts = {
            "energy": metrics.savings(self.runs, OURS),
            "energy late": metrics.savings(self.late_runs, OURS),
            "latency": metrics.savings(self.runs, OURS, "latency_s"),
            "latency late": metrics.savings(self.late_runs, OURS, "latency_s"),
        }
        return pd.concat(parts, names=["what"]).reset_index("what").reset_index(drop=True)

    def numbers(self) -> pd.DataFrame:
        """The numbers that claims refer to, by ``key``: savings, and violations of everyone."""
        saved = self.savings.assign(
            key=self.savings["what"] + " vs " + self.savings["scheduler"].astype(str)
        )
        shares = self.summary[self.summary["quantity"] == "violations"]
        shares = shares.assign(key="violations of " + shares["scheduler"].astype(str))
        columns = ["key", "value", "low", "high", "n"]
        return pd.concat([saved[columns], shares[columns]], ignore_index=True).assign(
            evidence=self.evidence
        )


def compare(
    device: str,
    task: Task,
    rules: Sequence[Rule],
    *,
    steps: int,
    seeds: int | Sequence[int],
    limit_s: float,
    trusted: Sequence[Arm],
    device_settings: Mapping[str, Any] | None = None,
    **spread: Any,
) -> Comparison:
    """Play all rules on a simulated or replayed board; see ``sweep``, which ``spread`` is for.

    Raises ValueError for a live device, which cannot serve several runs at once.
    """
    board = open_device(device, **(device_settings or {}))
    if not isinstance(board, KnownDevice):
        raise ValueError(f"device {device!r} is live: play one scheduler at a time on it")
    limits = {"latency_s": limit_s}
    table = sweep(
        *(rules, device, task, steps, seeds),
        limits=limits,
        trusted=trusted,
        device_settings=device_settings,
        **spread,
    )
    settings = {"device": device, "encoder": task.encoder, "steps": steps, **limits}
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    settings |= {"seeds": len(numbers), "first_seed": numbers[0]}
    return Comparison(table, limits, board.evidence, settings)


def compare_replay(path: str, steps: int, seeds: int) -> tuple[pd.DataFrame, str]:
    """Play the paper's line-up on every encoder of a trace.

    The limit of an encoder is the median latency of its arms: half of them meet it.

    Returns
    -------
    The runs (see ``metrics.per_run``) with a column ``encoder``, and their evidence class.
    """
    board = TraceDevice(path)
    runs = []
    for encoder, modality in board.modalities.items():
        task = Task(modality, encoder)
        comparison = compare(
            f"trace:{path}",
            task,
            paper_lineup(),
            steps=steps,
            seeds=seeds,
            limit_s=float(np.median(board.expected_all(task).latency_s)),
            trusted=full_power_arms(board.space),
        )
        runs.append(comparison.runs.assign(encoder=encoder))
    return pd.concat(runs, ignore_index=True), board.evidence


def compare_live(
    device: Device, task: Task, *, steps: int, limit_s: float, trusted: Sequence[Arm]
) -> Comparison:
    """Play the paper's line-up on a live device, once each, one after another.

    Nobody knows the truth of a live device, so there is no oracle; the mean over all runs of an
    arm stands in for its truth. If the device breaks, RunStopped carries what all of them did.
    """
    release_workers()  # idle ones hold memory, and nothing else should run meanwhile
    limits = {"latency_s": limit_s}
    rules = [rule for rule in paper_lineup() if rule.name != "oracle"]
    tables: list[pd.DataFrame] = []
    try:
        for rule in rules:
            tables.append(run(rule, device, task, steps, limits=limits, seeds=trusted))
    except RunStopped as error:
        raise RunStopped(str(error), pd.concat([*tables, error.table])) from error
    table = metrics.with_pooled_truth(pd.concat(tables, ignore_index=True), limits)
    table["scheduler"] = pd.Categorical(table["scheduler"], [rule.label for rule in rules])
    evidence = f"latency {device.evidence}, energy {device.energy_evidence}"
    settings = {"device": device.name, "encoder": task.encoder, "steps": steps, "seeds": 1}
    return Comparison(table, limits, evidence, {**settings, **limits})


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
