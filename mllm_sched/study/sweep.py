"""Many runs: every rule with every seed, on all cores or on a Dask cluster, one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mllm_sched.arms import Arm
from mllm_sched.devices import open_device
from mllm_sched.study.runner import Rule, run
from mllm_sched.tasks import Task

DASK_ENVIRONMENT = "MLLM_SCHED_DASK"
SEEDS_PER_JOB = 5  # a job of this size takes some seconds, a thousand times its overhead


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
    n_jobs
        Processes on this machine; all cores by default.
    dask
        Address of a Dask scheduler; by default the environment's MLLM_SCHED_DASK. Its workers
        need this package. Without an address the runs stay on this machine.
    label
        Shown by the progress bar.

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
        joblib.delayed(_job)(rule, device, settings, task, steps, chunk, terms)
        for rule in rules
        for chunk in chunks
    ]
    with _backend(dask or os.environ.get(DASK_ENVIRONMENT), n_jobs):
        parallel = joblib.Parallel(return_as="generator")
        progress = tqdm(
            parallel(jobs), total=len(jobs), desc=label or device, unit="job", leave=False
        )
        table = pd.concat(list(progress), ignore_index=True)
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
    # One thread each: the matrices are small, and the processes already fill the cores.
    with threadpool_limits(1):
        for seed in seeds:
            board = open_device(device, seed=np.random.SeedSequence([seed, 0]), **settings)
            try:
                tables.append(run(rule, board, task, steps, seed=seed, **terms))
            finally:
                board.close()
    return pd.concat(tables, ignore_index=True)


def _backend(dask: str | None, n_jobs: int | None) -> AbstractContextManager[Any]:
    if dask:
        return _DaskBackend(_client(dask))
    if n_jobs == 1:
        return nullcontext()
    return joblib.parallel_config("loky", n_jobs=n_jobs or -1)


def _client(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address)
    except (OSError, ValueError, MemoryError) as error:  # the last: it speaks something else
        raise OSError(
            f"no Dask scheduler at {address!r} (--dask or {DASK_ENVIRONMENT}): {error}"
        ) from error


class _DaskBackend(AbstractContextManager[None]):
    """joblib's Dask backend for as long as the client is open."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.config: Any = None

    def __enter__(self) -> None:
        self.config = joblib.parallel_config("dask", n_jobs=-1)
        self.config.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.config.__exit__(*error)
        self.client.close()


def _as_categories(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Labels in the order of the rules; concatenation may have turned them into strings."""
    table["scheduler"] = pd.Categorical(table["scheduler"].astype(str), categories=labels)
    table["failed"] = table["failed"].astype("category")
    return table
