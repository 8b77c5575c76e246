"""Many jobs on all cores or on a Dask cluster."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mllm_sched import paths

DASK_ENVIRONMENT = "MLLM_SCHED_DASK"
KEPT_ENVIRONMENT = "MLLM_SCHED_KEPT"


def _memory() -> joblib.Memory:
    """Cache of finished jobs by state of the code, in the folder of the environment; else none."""
    parent = os.environ.get(KEPT_ENVIRONMENT)
    if not parent:
        return joblib.Memory(None, verbose=0)
    code = [(path.as_posix(), path.read_bytes()) for path in sorted(paths.PACKAGE.rglob("*.py"))]
    versions = [platform.python_version(), *map(version, ("numpy", "scipy"))]
    return joblib.Memory(Path(parent) / str(joblib.hash([code, versions])), verbose=0)


MEMORY = _memory()  # at import, when this process read its code


def spread(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    label: str = "",
    n_jobs: int | None = None,
    dask: str | None = None,
) -> list[Any]:
    """``function(*job)`` for every job, in order, one thread each; see ``backend``.

    The function is a module's, so that other processes find it.
    """
    with backend(dask, n_jobs):
        parallel = joblib.Parallel(return_as="generator", batch_size=1)
        done = parallel(joblib.delayed(_call)(function, job) for job in jobs)
        return list(tqdm(done, label, len(jobs), leave=False, unit="job"))


@contextmanager
def backend(dask: str | None = None, n_jobs: int | None = None) -> Iterator[None]:
    """Where ``joblib.Parallel`` runs meanwhile: on ``n_jobs`` processes here, by default all cores.

    With ``dask`` or the environment's MLLM_SCHED_DASK, the address of a Dask scheduler, on its
    workers, which must run the same code. Raises OSError if no scheduler answers there.
    """
    address = dask or os.environ.get(DASK_ENVIRONMENT)
    if not address:
        with joblib.parallel_config(backend="loky", n_jobs=n_jobs or -1):
            yield
        return
    from distributed import Client

    try:
        client = Client(address)
    except (OSError, ValueError, MemoryError) as error:  # the last: it speaks something else
        told = f"no Dask scheduler at {address!r} (--dask or {DASK_ENVIRONMENT}): {error}"
        raise OSError(told) from error
    with client, joblib.parallel_config(backend="dask", client=client):
        yield


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    # One thread each: the matrices are small, and the processes already fill the cores.
    with threadpool_limits(1):
        return MEMORY.cache(function)(*job)
