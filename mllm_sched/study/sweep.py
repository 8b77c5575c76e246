"""Many runs: every rule with every seed, on all cores or on a Dask cluster, one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import open_device
from mllm_sched.study.runner import Rule, run
from mllm_sched.study.spread import spread
from mllm_sched.tasks import Task

SEEDS_PER_JOB = 5  # a job of this size takes some seconds


def sweep(
    rules: Sequence[Rule],
    device: str,
    task: Task,
    steps: int,
    seeds: int | Sequence[int],
    *,
    limits: Mapping[str, float],
    trusted: Iterable[Arm] = (),
    device_settings: Mapping[str, Any] | None = None,
    allow_infeasible: bool = False,
    n_jobs: int | None = None,
    dask: str | None = None,
    label: str = "",
) -> pd.DataFrame:
    """Run every rule with every seed.

    For a seed all rules meet a device that was opened with the same seed, so that they meet the
    same noise. The table does not depend on how the work was spread.

    Parameters
    ----------
    rules, task, steps, limits, allow_infeasible
        See ``run``.
    device
        As ``open_device`` knows it.
    seeds
        The seeds, or how many: 0, 1, ...
    trusted
        Seed arms of the schedulers.
    device_settings
        Further arguments of ``open_device``.
    n_jobs, dask, label
        See ``spread``.

    Returns
    -------
    The tables of ``run``, ordered by rule, seed and step.
    """
    if not rules:
        raise ValueError("rules=[]: give at least one")
    if len({rule.label for rule in rules}) < len(rules):
        raise ValueError(f"two rules share a label: {[rule.label for rule in rules]}")
    counted = isinstance(seeds, int | np.integer)
    numbers = list(range(seeds)) if counted else list(seeds)  # type: ignore[arg-type]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={seeds!r}: give at least one, and none twice")
    chunks = [numbers[i : i + SEEDS_PER_JOB] for i in range(0, len(numbers), SEEDS_PER_JOB)]
    settings = dict(device_settings or {})
    terms = {"limits": dict(limits), "seeds": list(trusted), "allow_infeasible": allow_infeasible}
    jobs = [
        (rule, device, settings, task, steps, chunk, terms) for rule in rules for chunk in chunks
    ]
    tables = spread(_job, jobs, label=label or device, n_jobs=n_jobs, dask=dask)
    table = pd.concat(tables, ignore_index=True)
    return _as_categories(table, [rule.label for rule in rules])


def _job(
    rule: Rule,
    device: str,
    settings: Mapping[str, Any],
    task: Task,
    steps: int,
    seeds: Sequence[int],
    terms: Mapping[str, Any],
) -> pd.DataFrame:
    tables = []
    for seed in seeds:
        board = open_device(device, seed=np.random.SeedSequence([seed, 0]), **settings)
        try:
            tables.append(run(rule, board, task, steps, seed=seed, **terms))
        finally:
            board.close()
    return pd.concat(tables, ignore_index=True)


def _as_categories(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Labels in the order of the rules; concatenation may have turned them into strings."""
    table["scheduler"] = pd.Categorical(table["scheduler"].astype(str), categories=labels)
    table["failed"] = table["failed"].astype("category")
    return table
