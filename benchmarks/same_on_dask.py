"""Compares the comparison of the schedulers on a Dask cluster with that here, byte for byte.

    .venv/bin/python benchmarks/same_on_dask.py --seeds 1000

runs the notebook on this machine alone, then on a Dask cluster of processes that listen on the
loopback, and compares every table and figure. Both runs are in ``build/same_on_dask``; an
interrupted one goes on where it was. With 1000 seeds that takes hours; ``--set steps=30`` and the
like make it small.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed import LocalCluster

from mllm_sched import paths

NOTEBOOK = "04_scheduler_comparison"
KINDS = (".csv", ".svg", ".png")
INTERRUPTED = 130  # exit status


def cluster(workers: int, folder: Path) -> LocalCluster:
    """So many processes with one thread each. They end with this one, however it ends."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the run
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",  # whoever reaches a worker can run code on it
            dashboard_address="127.0.0.1:0",
            local_directory=str(folder),
        )
    finally:
        signal.signal(signal.SIGINT, before)


def has_worked(cluster: LocalCluster) -> bool:
    """Whether the workers of a cluster have done a job yet."""
    log = cluster.scheduler.transition_log
    return any(moved[1:3] == ("processing", "memory") for moved in log)


def run(root: Path, parameters: Sequence[str], dask: str = "") -> int:
    """``make reproduce`` for the notebook, with everything it writes beneath ``root``.

    Returns
    -------
    Its exit status, after Ctrl-C as well: it is given the time to keep what it has finished.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in ("data", "notebooks", "requirements.lock"):
        if not (root / name).exists():
            (root / name).symlink_to(paths.ROOT / name)
    places = {"MLLM_SCHED_ROOT": str(root), "MLLM_SCHED_DASK": dask}
    module = [sys.executable, "-m", "mllm_sched.study.notebooks", "reproduce"]
    given = [word for pair in parameters for word in ("--set", pair)]
    process = subprocess.Popen([*module, *given, NOTEBOOK], env={**os.environ, **places})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the run has heard it, too, and says how to go on


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
    """Run twice and compare.

    Returns
    -------
    Exit status: 0 if all is the same; 1 if a file differs, or the workers had nothing to do; that
    of a run that failed or was interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--folder", type=Path, default=paths.BUILD / "same_on_dask")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    try:
        return _compare(folder, [f"seeds={options.seeds}", *options.set], options.workers)
    except KeyboardInterrupt:
        return INTERRUPTED


def _compare(folder: Path, parameters: Sequence[str], workers: int) -> int:
    print("on this machine alone:", flush=True)
    if status := run(folder / "local", parameters):
        return status
    with cluster(workers, folder) as on:
        print(f"on {workers} Dask workers:", flush=True)
        if status := run(folder / "dask", parameters, on.scheduler_address):
            return status
        worked = has_worked(on)
    return _verdict(folder, worked)


def _verdict(folder: Path, worked: bool) -> int:
    compared, other = differing(*(folder / name / "build/results" for name in ("dask", "local")))
    lines = [f"{name} differs" for name in other]
    if not worked:
        lines += [f"the workers had nothing to do; to compare anew, remove {folder / 'dask'}"]
    same = compared - len(other)
    print(*lines, f"{same} of {compared} tables and figures are the same, byte for byte", sep="\n")
    return int(bool(other) or not compared or not worked)


if __name__ == "__main__":
    raise SystemExit(main())
