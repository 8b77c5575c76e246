"""Compares the comparison of the schedulers on a Dask cluster with that here, byte for byte.

    .venv/bin/python benchmarks/same_on_dask.py --seeds 1000

starts a Dask scheduler and workers as processes of their own, runs the notebook on them and on
this machine alone, and compares every table and figure. Both runs are in ``build/same_on_dask``;
an interrupted one goes on where it was. With 1000 seeds that takes hours; ``--set steps=30`` and
the like make it small.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from mllm_sched import paths

NOTEBOOK = "04_scheduler_comparison"
KINDS = (".csv", ".svg")
START_S = 60.0


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[str]:
    """A scheduler and so many workers with one thread each; the scheduler's address."""
    told = folder / "scheduler.json"
    told.unlink(missing_ok=True)
    file = ["--scheduler-file", str(told)]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *file, "--port", "0"]
    each = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    with ExitStack() as stack:
        _start(stack, [*command, "--host", "127.0.0.1", "--no-dashboard"], folder / "scheduler.log")
        for number in range(workers):
            work = [sys.executable, "-m", "distributed.cli.dask_worker", *file, *each]
            _start(stack, work, folder / f"worker-{number}.log")
        yield _address(told)


def _start(stack: ExitStack, command: Sequence[str], log: Path) -> None:
    output = stack.enter_context(log.open("w"))
    process = stack.enter_context(
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    )
    stack.callback(process.terminate)


def _address(told: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if told.exists() and told.read_text().endswith("}"):
            return str(json.loads(told.read_text())["address"])
        time.sleep(0.2)
    raise OSError(f"no Dask scheduler within {START_S:.0f} s: see {told.parent}")


def has_worked(address: str) -> bool:
    """Whether the workers of a cluster have done a job yet."""
    with Client(address) as client:
        return bool(client.run_on_scheduler(_has_finished_one))


def _has_finished_one(dask_scheduler: Any) -> bool:
    log = dask_scheduler.transition_log
    return any(moved[1:3] == ("processing", "memory") for moved in log)


def run(root: Path, parameters: Sequence[str], dask: str = "") -> None:
    """``make reproduce`` for the notebook, with everything it writes beneath ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("data", "notebooks", "requirements.lock"):
        if not (root / name).exists():
            (root / name).symlink_to(paths.ROOT / name)
    places = {"MLLM_SCHED_ROOT": str(root), "MLLM_SCHED_DASK": dask}
    module = [sys.executable, "-m", "mllm_sched.study.notebooks", "reproduce"]
    given = [word for pair in parameters for word in ("--set", pair)]
    subprocess.run([*module, *given, NOTEBOOK], check=True, env={**os.environ, **places})


def differing(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many files were compared, and the names of those that differ or miss their twin."""
    files = [
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in _results(folder)}
        for folder in (one, other)
    ]
    names = sorted(files[0] | files[1])
    return len(names), [name for name in names if files[0].get(name) != files[1].get(name)]


def _results(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in KINDS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run twice and compare; exit status 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--folder", type=Path, default=paths.BUILD / "same_on_dask")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [f"seeds={options.seeds}", *options.set]
    with cluster(options.workers, folder) as address:
        print(f"on {options.workers} Dask workers:", flush=True)
        run(folder / "dask", parameters, address)
        worked = has_worked(address)
    print("on this machine alone:", flush=True)
    run(folder / "local", parameters)
    compared, other = differing(*(folder / name / "build/results" for name in ("dask", "local")))
    print(*(f"{name} differs" for name in other), sep="\n", end="\n" if other else "")
    print(
        "" if worked else "the workers had nothing to do: the run on them was up to date\n", end=""
    )
    print(f"{compared - len(other)} of {compared} tables and figures are the same, byte for byte")
    return int(bool(other) or not compared)


if __name__ == "__main__":
    raise SystemExit(main())
