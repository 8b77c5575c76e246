"""Runs the notebooks: into ``build/`` with papermill, or in place for their committed outputs.

``python -m mllm_sched.study.notebooks reproduce|refresh|normalise``; the Makefile calls it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import papermill
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from mllm_sched import paths
from mllm_sched.endings import interrupt_on_signals
from mllm_sched.files import locked
from mllm_sched.study import checkpoints, committed
from mllm_sched.study.checkpoints import remove_old
from mllm_sched.study.committed import KERNEL, normalise
from mllm_sched.study.parameters import pairs, typed
from mllm_sched.study.records import Run

EXECUTED = paths.BUILD / "notebooks"
GO_ON = "Interrupted. The same command goes on from here: what was finished is not run again."

# Set before a kernel starts: the same numbers whatever the machine, and no bars in outputs.
STEADY = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
}


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The repository's notebooks in order, or those named; an unknown name raises ValueError."""
    known = {path.stem: path for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))}
    chosen = [Path(name).stem for name in names] or list(known)
    for name in chosen:
        if name not in known:
            raise ValueError(f"notebook {name!r}: expected one of {', '.join(known)}")
    return [known[name] for name in chosen]


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second process that writes results; usable as a decorator."""
    lock = locked(EXECUTED / ".lock")
    if lock is None:
        raise BlockingIOError(
            "another process is running notebooks of this checkout: wait for it, or stop it"
        )
    with lock:
        yield


@_alone()
def reproduce(
    parameters: Mapping[str, str], names: Sequence[str] = (), *, force: bool = False
) -> None:
    """Execute notebooks that are not up to date, saying which these are and why.

    They go into ``build/notebooks``. Other parameters than the notebooks' own send the results to
    ``build/results`` and the notebooks to ``build/notebooks/own``, so that neither the committed
    results nor the records of their runs are touched. What was finished before an interruption is
    not run again, and long studies go on where they were; see ``records`` and ``checkpoints``.

    Parameters
    ----------
    parameters
        As texts, by name.
    names
        Of notebooks; all by default.
    force
        Whether to run what is up to date, too.

    Raises
    ------
    PapermillExecutionError
        When a cell fails; what was executed up to it stays in the folder.
    BlockingIOError
        When another process is at it.
    """
    chosen = notebooks(names)
    given = typed(parameters, chosen)
    os.environ.update(STEADY)
    results, folder = places(parameters)
    os.environ["MLLM_SCHED_RESULTS"] = str(results)
    for number, path in enumerate(chosen, start=1):
        run = Run(path, given[path], results, folder)
        label = f"[{number}/{len(chosen)}] {path.stem}"
        if why := "FORCE=1" if force else run.why():
            print(f"{label} {given[path] or ''}".rstrip() + f": {why}", flush=True)
            print(f"{label}: {_execute(run)}", flush=True)
        else:
            saved = f"{run.saved_s:.0f} s saved"
            print(f"{label}: up to date (same code, data and parameters; {saved})", flush=True)
    for other in _others(parameters, chosen):
        print(f"beside them are results of another run: {other}", flush=True)


def places(parameters: Mapping[str, str]) -> tuple[Path, Path]:
    """Where results and executed notebooks go: their own, or those of other parameters."""
    if parameters:
        return paths.BUILD / "results", EXECUTED / "own"
    return paths.RESULTS, EXECUTED


def _others(parameters: Mapping[str, str], chosen: Sequence[Path]) -> Iterator[str]:
    """Notebooks whose results a verdict would mix with those of the chosen, and why they differ."""
    results, folder = places(parameters)
    left = [path for path in notebooks() if path not in chosen and (results / path.stem).exists()]
    if not parameters or not left:
        return
    for path, given in typed(parameters, [*chosen, *left]).items():
        if path in left and (why := Run(path, given, results, folder).why()):
            yield f"{path.stem} ({why})"


def _execute(run: Run) -> str:
    """Execute a notebook and record that it came to its end; what to say of it."""
    begun = time.perf_counter()
    run.begin()
    with _checkpoints(run):
        papermill.execute_notebook(
            str(run.notebook),
            str(run.executed),
            parameters=run.parameters,
            kernel_name=KERNEL,
            stderr_file=sys.stderr,  # the bars of long cells
        )
    wall_s = time.perf_counter() - begun
    changed = run.finish(wall_s)
    return f"{wall_s:.0f} s" + (f", but it counts as not run: {changed}" if changed else "")


@contextmanager
def _checkpoints(run: Run) -> Iterator[None]:
    """Long studies keep their finished jobs, until the notebook has come to its end.

    Those go, too, if nobody knows which code they are of.
    """
    parent = paths.CACHE / "sweeps"
    remove_old(parent)
    folder = parent / f"{run.name}-{run.digest[:16]}"
    before = os.environ.get(checkpoints.ENVIRONMENT)
    os.environ[checkpoints.ENVIRONMENT] = str(folder)
    finished = False
    try:
        yield
        finished = True
    finally:
        del os.environ[checkpoints.ENVIRONMENT]
        os.environ.update({checkpoints.ENVIRONMENT: before} if before is not None else {})
        if finished or run.meanwhile():
            shutil.rmtree(folder, ignore_errors=True)


@_alone()
def refresh(names: Sequence[str] = (), *, live: bool = False) -> None:
    """Execute notebooks in place with their own parameters; their outputs are then the result.

    Outputs of live cells are a record of one run and stay if the code is the same, unless
    ``live``; a line says which did.
    """
    os.environ.update(STEADY, TQDM_DISABLE="1")
    for path in notebooks(names):
        print(path.stem, flush=True)
        if kept := committed.refresh(path, live=live):
            places = ", ".join(map(str, kept))
            print(f"{path.stem}: live outputs kept in cells {places}; LIVE=1 takes new ones")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 for a failed cell, 2 for a wrong call, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "reproduce":
            reproduce(pairs(options.set), options.notebooks, force=options.force)
        elif options.command == "refresh":
            refresh(options.notebooks, live=options.live)
        else:
            return int(sum(map(normalise, map(Path, options.notebooks))) > 0)
    except (PapermillExecutionError, CellExecutionError, DeadKernelError) as error:
        print(f"{error}\n{_left(options)}", file=sys.stderr)
        return 1
    except (ValueError, BlockingIOError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{GO_ON if options.command == 'reproduce' else 'Interrupted.'}", file=sys.stderr)
        return 130
    return 0


def _left(options: argparse.Namespace) -> str:
    """Where a notebook is whose cell failed."""
    if options.command == "reproduce":
        return f"The notebook up to this cell is in {places(pairs(options.set))[1]}"
    return "The notebook is as it was."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("reproduce", "refresh", "normalise"):
        command = commands.add_parser(name)
        command.add_argument("notebooks", nargs="*")
        if name == "reproduce":
            command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
            command.add_argument("--force", action="store_true", help="run what is up to date, too")
        if name == "refresh":
            command.add_argument("--live", action="store_true", help="new outputs of live cells")
    return parser


if __name__ == "__main__":
    interrupt_on_signals()  # else an ended run leaves its kernel and what that started behind
    raise SystemExit(main())
