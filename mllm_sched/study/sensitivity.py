"""Does a verdict hang on a choice that the paper left open? The same comparison, otherwise made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mllm_sched.devices import Noise, open_device
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.study.comparison import Comparison
from mllm_sched.study.lineup import full_power_arms, paper_lineup, transferred
from mllm_sched.study.metrics import interval, per_run, savings
from mllm_sched.study.plots import OURS
from mllm_sched.study.runner import Rule
from mllm_sched.study.sweep import sweep
from mllm_sched.tasks import Task

NO_CPU = "no CPU arms"
OTHERS = ("UCB", "UCB + penalty", "Epsilon-greedy", "Epsilon-greedy + penalty")


@dataclass(frozen=True)
class Variant:
    """One way to make the comparison on the simulated board.

    Attributes
    ----------
    label
        What is different.
    encoder, limit_s, steps
        The task, its latency limit in seconds, and how many.
    board
        Further arguments of the simulated board.
    trusted
        Components whose full-power arm is trusted.
    baseline
        Settings of UCB.
    fitted
        Whether the Gaussian processes take fitted hyperparameters, or the defaults.
    """

    label: str
    encoder: str = "clip-vit-l14-336"
    limit_s: float = 0.2
    steps: int = 1000
    board: Mapping[str, Any] = field(default_factory=dict)
    trusted: Sequence[str] = ("gpu", "dla")
    baseline: Mapping[str, Any] = field(default_factory=dict)
    fitted: bool = True


def variants(steps: int = 1000) -> list[Variant]:
    """The choices of DEVIATIONS.md that a number could hang on, one changed at a time."""
    base = Variant("as in the main comparison", steps=steps)

    def other(label: str, **changes: Any) -> Variant:
        return replace(base, label=label, **changes)

    return [
        base,
        other("limit 0.1 s", limit_s=0.1),
        other("limit 0.5 s", limit_s=0.5),
        other(NO_CPU, board={"components": ("gpu", "dla")}),
        other("energy without idle power", board={"accounting": "marginal"}),
        other("five times the noise", board={"noise": Noise(0.08, 0.08)}),
        other("UCB explores less (0.02)", baseline={"exploration": 0.02}),
        other("UCB as in the textbook (1)", baseline={"exploration": 1.0}),
        other("default hyperparameters", fitted=False),
        other("one trusted arm, on the GPU", trusted=("gpu",)),
        other("a fifth of the tasks", steps=steps // 5),
        other("five times the tasks", steps=steps * 5),
        other("clip-vit-b32, limit 0.04 s", encoder="clip-vit-b32", limit_s=0.04),
        other("whisper-small", encoder="whisper-small"),
        other("videomae-base", encoder="videomae-base"),
        other("resnet-50, limit 0.02 s", encoder="resnet-50", limit_s=0.02),
    ]


def all_tasks() -> list[Task]:
    """One task for every encoder whose work is known."""
    return [Task(modality, name) for name, modality in encoder_modalities().items()]


def sensitivity(chosen: Sequence[Variant], seeds: int, n_jobs: int | None = None) -> pd.DataFrame:
    """Savings of safe GP-UCB under every variant.

    Returns
    -------
    Long table: ``variant``, ``key`` (``saving <other>``, ``late saving <other>`` over the second
    half of the tasks, ``violations <scheduler>``), ``value``, ``low``, ``high``, ``n``.
    """
    return pd.concat([_one(variant, seeds, n_jobs) for variant in chosen], ignore_index=True)


SHOWN = (
    *("saving UCB", "late saving UCB"),
    *("saving Epsilon-greedy", "late saving Epsilon-greedy"),
    *("violations Safe GP-UCB", "violations UCB", "violations UCB + penalty"),
)


def as_table(table: pd.DataFrame) -> pd.DataFrame:
    """The numbers worth reading first, one row a variant."""
    wide = table.pivot(index="variant", columns="key", values="value")
    return wide.loc[list(dict.fromkeys(table["variant"])), list(SHOWN)]


def claim_numbers(played: Comparison, variant_table: pd.DataFrame) -> pd.DataFrame:
    """The numbers that claims refer to: those of the comparison, and those without CPU arms."""
    without = variant_table[variant_table["variant"] == NO_CPU].drop(columns="variant")
    without = without.assign(key="no CPU arms, " + without["key"], evidence="simulated")
    return pd.concat([played.numbers(), without], ignore_index=True)


def _one(variant: Variant, seeds: int, n_jobs: int | None) -> pd.DataFrame:
    device = open_device("agx-orin-sim", **variant.board)
    task = next(task for task in all_tasks() if task.encoder == variant.encoder)
    limits = {"latency_s": variant.limit_s}
    fitted = transferred(device, task, all_tasks()) if variant.fitted else None  # type: ignore[arg-type]
    table = sweep(
        _rules(variant, fitted),
        "agx-orin-sim",
        task,
        variant.steps,
        seeds,
        limits=limits,
        trusted=full_power_arms(device.space, variant.trusted),
        device_settings=variant.board,
        n_jobs=n_jobs,
        label=variant.label,
    )
    whole, late = per_run(table, limits), per_run(table, limits, start=variant.steps // 2)
    rows = [
        *_rows("saving", savings(whole, OURS)),
        *_rows("late saving", savings(late, OURS)),
    ]
    for scheduler, group in whole.groupby("scheduler", observed=True):
        shares = group["violations"].to_numpy()
        rows.append((f"violations {scheduler}", *interval(shares), len(shares)))
    frame = pd.DataFrame(rows, columns=["key", "value", "low", "high", "n"])
    frame.insert(0, "variant", variant.label)
    return frame


def _rules(variant: Variant, fitted: dict[str, Hyperparameters] | None) -> list[Rule]:
    rules = [rule for rule in paper_lineup(fitted) if rule.label in (OURS, *OTHERS)]
    return [
        replace(rule, settings={**rule.settings, **variant.baseline})
        if rule.name == "ucb"
        else rule
        for rule in rules
    ]


def _rows(key: str, table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [
        (f"{key} {row.scheduler}", row.value, row.low, row.high, row.n)
        for row in table.itertuples()
    ]
