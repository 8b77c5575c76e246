"""Jobs on a Dask cluster whose workers run the same code as this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from mllm_sched.study.versions import running

DASK_ENVIRONMENT = "MLLM_SCHED_DASK"


def on_cluster(
    address: str, function: Callable[..., Any], jobs: Mapping[int, tuple[Any, ...]]
) -> Generator[tuple[int, Any], None, None]:
    """The places of jobs and ``function(*job)``, as they finish.

    Raises
    ------
    OSError
        When no scheduler answers at the address, or a worker runs other code or packages. A job
        looks, too: its worker may have joined later.
    """
    from distributed import as_completed

    with _client(address) as client:
        if others := _others(client.run(running, on_error="return")):
            raise OSError(f"{'; '.join(others)}: start these Dask workers anew, as it is here")
        places = {
            client.submit(_there, running(), function, job, pure=False): place
            for place, job in jobs.items()
        }
        for future, result in as_completed(list(places), with_results=True):
            yield places.pop(future), result  # from then on the cluster may forget it


def _client(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address)
    except (OSError, ValueError, MemoryError) as error:  # the last: it speaks something else
        raise OSError(
            f"no Dask scheduler at {address!r} (--dask or {DASK_ENVIRONMENT}): {error}"
        ) from error


def _there(wanted: Mapping[str, str], function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    """Run a job, in a worker."""
    if others := _others({"this worker": running()}, wanted):
        raise OSError(others[0])
    return function(*job)


def _others(found: Mapping[str, Any], wanted: Mapping[str, str] | None = None) -> list[str]:
    """Workers that run something else than is wanted, by default than here, and what it is."""
    wanted = wanted or running()
    said = []
    for worker, runs in found.items():
        if not isinstance(runs, Mapping):  # so old that it cannot even say
            said.append(f"{worker} has another {next(iter(wanted))} ({runs!r})")
        elif names := [name for name in wanted if runs.get(name) != wanted[name]]:
            said.append(f"{worker} has another {', '.join(names)}")
    return said
