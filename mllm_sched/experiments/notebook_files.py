"""Notebooks as files: parameters from the command line, and the same bytes after equal runs.

``python -m mllm_sched.experiments.notebook_files parameters FOLDER --set NAME=VALUE NOTEBOOK...``
writes each notebook's share of the parameters to ``FOLDER/<name>.yaml``, as papermill reads them.
``... normalise NOTEBOOK...`` removes what differs between equal runs; outputs stay.
The Makefile and pre-commit call it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbstripout import strip_output

from mllm_sched.atomic_io import write_whole

WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without its kernel
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def defaults(path: Path) -> dict[str, Any]:
    """Parameters of a notebook with their defaults; empty if it has no ``parameters`` cell."""
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return {
        line.target.id: ast.literal_eval(line.value)
        for source in tagged
        for line in ast.parse(source).body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
    }


def typed(given: Sequence[str], paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Parameters given as ``NAME=VALUE``: for each notebook those that it has, typed like them.

    Raises ValueError for what is not ``NAME=VALUE``, a parameter that no notebook has (the known
    ones are listed), or a value of another type than the notebook's default.
    """
    texts = {name: (value, sign) for name, sign, value in (pair.partition("=") for pair in given)}
    known = {path: defaults(path) for path in paths}
    for name, (value, sign) in texts.items():
        if not (name and sign and value):
            raise ValueError(f"{name}{sign}{value}: expected NAME=VALUE")
        if not any(name in has for has in known.values()):
            lines = [f"  {path.stem}: {', '.join(has)}" for path, has in known.items() if has]
            raise ValueError(f"no notebook has the parameter {name!r}:\n" + "\n".join(lines))
    return {
        path: {
            name: _value(f"{path.stem}: {name}", text, has[name])
            for name, (text, _) in texts.items()
            if name in has
        }
        for path, has in known.items()
    }


def _value(name: str, text: str, default: object) -> object:
    # YAML would take 1e-1 for a text and 10 for a number.
    readers: Mapping[type, Any] = {str: str, int: int, float: float}
    try:
        value = readers.get(type(default), yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if type(value) is not type(default):
        raise ValueError(f"{name}={text}: expected {type(default).__name__}")
    return value


def normalise(path: Path) -> None:
    """Remove warnings, views of widgets, timings and traces of tools; outputs and counts stay.

    Ids of cells become the notebook's number and the cell's place.
    """
    before = path.read_text()
    notebook = nbformat.reads(before, as_version=4)
    kept: dict[str, Any] = {"keep_output": True, "keep_count": True, "keep_id": True}
    strip_output(notebook, **kept, drop_output_types={"stream:stderr"})
    notebook.metadata, notebook.nbformat_minor = METADATA, 5
    for place, cell in enumerate(notebook.cells):
        cell.id = f"{path.name[:2]}-{place:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
    after = nbformat.writes(notebook).rstrip("\n") + "\n"
    if after != before:
        write_whole(path, after.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parameters = commands.add_parser("parameters")
    parameters.add_argument("folder", type=Path)
    parameters.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for command in (parameters, commands.add_parser("normalise")):
        command.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args(argv)
    if options.command == "normalise":
        for path in options.notebooks:
            normalise(path)
        return 0
    try:
        found = typed(options.set, options.notebooks)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    for path, values in found.items():
        write_whole(options.folder / f"{path.stem}.yaml", yaml.safe_dump(values).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
