"""The comparison of the schedulers: on the simulated board, on a replayed table, and live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Device, KnownDevice, open_device
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.study import metrics
from mllm_sched.study.lineup import OURS, full_power_arms, paper_lineup
from mllm_sched.study.runner import Rule, RunStopped, run
from mllm_sched.study.spread import release_workers
from mllm_sched.study.sweep import sweep
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
