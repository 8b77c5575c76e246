"""Runs the notebooks: into ``build/`` with papermill, or in place for their committed outputs.

``python -m mllm_sched.study.notebooks reproduce|refresh|normalise``; the Makefile calls it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient import NotebookClient
from papermill.exceptions import PapermillExecutionError

from mllm_sched import paths

KERNEL = "python3"
EXECUTED = paths.BUILD / "notebooks"

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


def reproduce(parameters: Mapping[str, str], names: Sequence[str] = ()) -> None:
    """Execute notebooks into ``build/notebooks``, saying where it is.

    Other parameters than the notebooks' own send the results to ``build/results``, so that the
    committed ones stay what they are said to be.

    Raises
    ------
    PapermillExecutionError
        When a cell fails; what was executed up to it stays in ``build/notebooks``.
    """
    chosen = notebooks(names)
    given = typed(parameters, chosen)
    os.environ.update(STEADY)
    if parameters:
        os.environ["MLLM_SCHED_RESULTS"] = str(paths.BUILD / "results")
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(chosen, start=1):
        begun = time.perf_counter()
        print(f"[{number}/{len(chosen)}] {path.stem} {given[path] or ''}", flush=True)
        papermill.execute_notebook(
            str(path),
            str(EXECUTED / path.name),
            parameters=given[path],
            kernel_name=KERNEL,
            stderr_file=sys.stderr,  # the bars of long cells
        )
        print(f"[{number}/{len(chosen)}] {path.stem}: {time.perf_counter() - begun:.0f} s")


def refresh(names: Sequence[str] = ()) -> None:
    """Execute notebooks in place with their own parameters; their outputs are then the result."""
    os.environ.update(STEADY, TQDM_DISABLE="1")
    for path in notebooks(names):
        print(path.stem, flush=True)
        notebook = nbformat.read(path, as_version=4)
        where = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=None, kernel_name=KERNEL, resources=where).execute()
        nbformat.write(notebook, path)
        normalise(path)


def normalise(path: Path) -> bool:
    """Remove what differs between two equal runs; says whether anything did.

    Outputs and execution counts stay. Warnings, timings, the version of the language, and traces
    of the tools go; ids of cells become the notebook's number and their place.
    """
    before = path.read_text()
    notebook = nbformat.reads(before, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem[:2]}-{place:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    after = nbformat.writes(notebook)
    after = after if after.endswith("\n") else after + "\n"
    if after != before:
        path.write_text(after)
    return after != before


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 for a failed cell, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("reproduce", "refresh", "normalise"):
        command = commands.add_parser(name)
        command.add_argument("notebooks", nargs="*")
        if name == "reproduce":
            command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(argv)
    try:
        if options.command == "reproduce":
            reproduce(_pairs(options.set), options.notebooks)
        elif options.command == "refresh":
            refresh(options.notebooks)
        else:
            return int(sum(map(normalise, map(Path, options.notebooks))) > 0)
    except PapermillExecutionError as error:
        print(f"{error}\nThe notebook up to this cell is in {EXECUTED}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"--set {name}{equals}{value}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    raise SystemExit(main())
