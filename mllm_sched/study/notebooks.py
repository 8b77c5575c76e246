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
from typing import Any

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from mllm_sched import paths
from mllm_sched.endings import interrupt_on_signals
from mllm_sched.study import checkpoints, committed
from mllm_sched.study.checkpoints import remove_old
from mllm_sched.study.committed import KERNEL, normalise
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


def typed(parameters: Mapping[str, str], chosen: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Parameters given as text, for each notebook those that it has, with their types.

    Raises
    ------
    ValueError
        For a parameter that no notebook has (the known ones are listed), or a value of another
        type than the notebook's default.
    """
    known = {path: papermill.inspect_notebook(str(path)) for path in chosen}
    for name in parameters:
        if not any(name in has for has in known.values()):
            lines = [f"  {path.stem}: {', '.join(has)}" for path, has in known.items() if has]
            raise ValueError(f"no notebook has the parameter {name!r}:\n" + "\n".join(lines))
    return {
        path: {
            name: _value(path.stem, name, text, has[name])
            for name, text in parameters.items()
            if name in has
        }
        for path, has in known.items()
    }


def _value(notebook: str, name: str, text: str, parameter: Mapping[str, str]) -> Any:
    value = yaml.safe_load(text)
    wanted = parameter["inferred_type_name"]
    if wanted == "str":
        return text
    if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ != wanted:
        raise ValueError(f"{notebook}: {name}={text}: expected {wanted}")
    return value


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
    """
    chosen = notebooks(names)
    given = typed(parameters, chosen)
    os.environ.update(STEADY)
    results, folder = places(parameters)
    os.environ["MLLM_SCHED_RESULTS"] = str(results)
    for number, path in enumerate(chosen, start=1):
        run, label = (
            Run(path, given[path], results, folder),
            f"[{number}/{len(chosen)}] {path.stem}",
        )
        if why := "FORCE=1" if force else run.why():
            print(f"{label} {given[path] or ''}".rstrip() + f": {why}", flush=True)
            print(f"{label}: {_execute(run):.0f} s", flush=True)
        else:
            saved = f"{run.saved_s:.0f} s saved"
            print(f"{label}: up to date (same code, data and parameters; {saved})", flush=True)


def places(parameters: Mapping[str, str]) -> tuple[Path, Path]:
    """Where results and executed notebooks go: their own, or those of other parameters."""
    if parameters:
        return paths.BUILD / "results", EXECUTED / "own"
    return paths.RESULTS, EXECUTED


def _execute(run: Run) -> float:
    """Execute a notebook and record that it came to its end; how long it took, seconds."""
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
    run.finish(wall_s)
    return wall_s


@contextmanager
def _checkpoints(run: Run) -> Iterator[None]:
    """Long studies keep their finished jobs, until the notebook has come to its end."""
    parent = paths.CACHE / "sweeps"
    remove_old(parent)
    folder = parent / f"{run.name}-{run.digest[:16]}"
    os.environ[checkpoints.ENVIRONMENT] = str(folder)
    try:
        yield
    finally:
        del os.environ[checkpoints.ENVIRONMENT]
    shutil.rmtree(folder, ignore_errors=True)


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
            reproduce(_pairs(options.set), options.notebooks, force=options.force)
        elif options.command == "refresh":
            refresh(options.notebooks, live=options.live)
        else:
            return int(sum(map(normalise, map(Path, options.notebooks))) > 0)
    except PapermillExecutionError as error:
        folder = places(_pairs(options.set))[1]
        print(f"{error}\nThe notebook up to this cell is in {folder}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{GO_ON if options.command == 'reproduce' else 'Interrupted.'}", file=sys.stderr)
        return 130
    return 0


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


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"--set {name}{equals}{value}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    interrupt_on_signals()  # else an ended run leaves its kernel and what that started behind
    raise SystemExit(main())
