"""Many jobs on all cores or on a Dask cluster: the one place where work is spread."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mllm_sched.study.checkpoints import MISSING, Checkpoints
from mllm_sched.study.cluster import DASK_ENVIRONMENT, on_cluster


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
        need this package, its packages and Python in the same versions. Without an address the
        jobs stay on this machine.

    Returns
    -------
    The results, in the order of the jobs.

    Raises
    ------
    OSError
        When no Dask scheduler answers at the address, or workers of it run other code.
    """
    store = Checkpoints.from_environment()
    results = [store.load(function, job) if store else MISSING for job in jobs]
    left = {
        place: (function, jobs[place]) for place, result in enumerate(results) if result is MISSING
    }
    address = dask or os.environ.get(DASK_ENVIRONMENT)
    done = on_cluster(address, _call, left) if address else _here(n_jobs, left)
    bar = tqdm(None, label, len(jobs), leave=False, initial=len(jobs) - len(left), unit="job")
    with bar, closing(done):
        for place, result in done:
            results[place] = result
            if store:
                store.save(function, jobs[place], result)
            bar.update()
    return results


def _here(
    n_jobs: int | None, calls: Mapping[int, tuple[Any, ...]]
) -> Generator[tuple[int, Any], None, None]:
    """The places of calls and their results, as they finish: a slow one holds no other up."""
    parallel = joblib.Parallel(
        n_jobs or -1, backend="loky", return_as="generator_unordered", batch_size=1
    )
    yield from parallel(joblib.delayed(_placed)(place, *call) for place, call in calls.items())


def _placed(place: int, function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[int, Any]:
    return place, _call(function, job)


def release_workers() -> None:
    """End the processes that wait here for more work; the next call starts others."""
    get_reusable_executor().shutdown(wait=True)


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    # One thread each: the matrices are small, and the processes already fill the cores.
    with threadpool_limits(1):
        return function(*job)
