"""Many jobs on all cores or on a Dask cluster: the one place where work is spread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import joblib
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mllm_sched.study.checkpoints import MISSING, Checkpoints

DASK_ENVIRONMENT = "MLLM_SCHED_DASK"


def spread(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    label: str = "",
    n_jobs: int | None = None,
    dask: str | None = None,
) -> list[Any]:
    """``function(*job)`` for every job; the results do not depend on where each was run.

    Parameters
    ----------
    function
        Of a module, so that other processes find it. One thread is all that it gets.
    jobs
        Its arguments. A job should take seconds, a thousand times its overhead.
    label
        Shown by the progress bar.
    n_jobs
        Processes on this machine; all cores by default.
    dask
        Address of a Dask scheduler; by default the environment's MLLM_SCHED_DASK. Its workers
        need this package. Without an address the jobs stay on this machine.

    Returns
    -------
    The results, in the order of the jobs.

    Raises
    ------
    OSError
        When no Dask scheduler answers at the address.
    """
    store = Checkpoints.from_environment()
    results = [store.load(function, job) if store else MISSING for job in jobs]
    left = [place for place, result in enumerate(results) if result is MISSING]
    calls = [joblib.delayed(_call)(function, jobs[place]) for place in left]
    with _backend(dask or os.environ.get(DASK_ENVIRONMENT), n_jobs):
        done = joblib.Parallel(return_as="generator")(calls)
        bar = tqdm(done, label, len(jobs), leave=False, initial=len(jobs) - len(left), unit="job")
        for place, result in zip(left, bar, strict=True):
            results[place] = result
            if store:
                store.save(function, jobs[place], result)
    return results


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    # One thread each: the matrices are small, and the processes already fill the cores.
    with threadpool_limits(1):
        return function(*job)


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
