"""The comparison of schedulers: the same tasks, seeds and noise for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import KnownDevice, open_device
from mllm_sched.experiments import metrics
from mllm_sched.experiments.lineup import OURS
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.tasks import Task

SHOWN = [
    *("energy_j", "energy_over_oracle", "latency_s"),
    *("violations", "observed_violations", "regret_j", "switches"),
]


@dataclass(frozen=True)
class Comparison:
    """Runs of several schedulers on the same tasks; ``table`` is of ``run`` or ``sweep``."""

    table: pd.DataFrame
    limits: Mapping[str, float]
    evidence: str

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per scheduler and seed; see ``metrics.per_run``."""
        return metrics.per_run(self.table, self.limits)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Means over seeds with their intervals, long; see ``metrics.summarise``."""
        return metrics.summarise(self.runs)

    def overview(self) -> pd.DataFrame:
        """Means over seeds, one row per scheduler."""
        return self.summary.pivot(index="scheduler", columns="quantity", values="value")[SHOWN]

    @cached_property
    def savings(self) -> pd.DataFrame:
        """How much less safe GP-UCB takes than every other scheduler, paired by seed.

        Columns ``what`` (energy, latency; late: over the second half), ``scheduler``, ``value``,
        ``low``, ``high``, ``n``.
        """
        steps = int(self.table["step"].max()) + 1
        late = metrics.per_run(self.table, self.limits, start=steps // 2)
        parts = {
            "energy": metrics.savings(self.runs, OURS),
            "energy late": metrics.savings(late, OURS),
            "latency": metrics.savings(self.runs, OURS, "latency_s"),
            "latency late": metrics.savings(late, OURS, "latency_s"),
        }
        return pd.concat(parts, names=["what"]).reset_index("what").reset_index(drop=True)

    def claim_numbers(self) -> pd.DataFrame:
        """The numbers that claims refer to, by ``key``: savings, and violations of everyone."""
        saved = self.savings.assign(
            key=self.savings["what"] + " vs " + self.savings["scheduler"].astype(str)
        )
        shares = self.summary[self.summary["quantity"] == "violations"]
        shares = shares.assign(key="violations of " + shares["scheduler"].astype(str))
        columns = ["key", *metrics.NUMBER]
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
    **options: Any,
) -> Comparison:
    """Run all rules on a simulated or replayed device; ``options`` are those of ``sweep``.

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
        **options,
    )
    return Comparison(table, limits, board.evidence)


def with_numbers_without_cpu(played: Comparison, without: Comparison) -> pd.DataFrame:
    """The numbers of notebook 04's claims: of the comparison, and of that without CPU arms."""
    numbers = without.claim_numbers()
    numbers["key"] = "no CPU arms, " + numbers["key"]
    return pd.concat([played.claim_numbers(), numbers], ignore_index=True)
