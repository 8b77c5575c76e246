"""The notebooks as they are committed: run in place, and alike after equal runs.

Cells tagged ``nbval-ignore-output`` show live measurements, which differ from run to run. Their
outputs are a record of one run and stay, unless new ones are asked for, or the code of such a cell
or of one before it changed. The digest of that code is kept with the cell, as ``recorded``.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from mllm_sched.files import write_whole

KERNEL = "python3"
LIVE_TAG = "nbval-ignore-output"
WIDGET = "application/vnd.jupyter.widget-view+json"  # nothing without its kernel


def refresh(path: Path, *, live: bool = False) -> list[int]:
    """Execute a notebook in place.

    Parameters
    ----------
    path
        The notebook.
    live
        Whether live cells take the new outputs in any case.

    Returns
    -------
    The places of the live cells that kept their recorded outputs.

    Raises
    ------
    CellExecutionError
        When a cell fails; the file then stays as it was.
    """
    before = nbformat.read(path, as_version=4)
    after = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(after, timeout=None, kernel_name=KERNEL, resources=where).execute()
    kept = [] if live else _keep(before, after)
    for place in _live_cells(after):
        after.cells[place].metadata["recorded"] = _code_until(after, place)
    write_whole(path, normalised(after, path.stem).encode())
    return kept


def _keep(before: NotebookNode, after: NotebookNode) -> list[int]:
    """Give live cells the outputs they had, where these are of the same code."""
    kept = []
    for place in _live_cells(before):
        cell = before.cells[place]
        if cell.outputs and cell.metadata.get("recorded") == _code_until(before, place):
            after.cells[place].outputs = cell.outputs
            kept.append(place)
    return kept


def _live_cells(notebook: NotebookNode) -> list[int]:
    return [
        place
        for place, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and LIVE_TAG in cell.metadata.get("tags", [])
    ]


def _code_until(notebook: NotebookNode, place: int) -> str:
    """Digest of the code of a cell and of all before it."""
    cells = [cell for cell in notebook.cells[: place + 1] if cell.cell_type == "code"]
    return sha256("\n\n".join(cell.source for cell in cells).encode()).hexdigest()[:16]


def normalise(path: Path) -> bool:
    """Remove from a file what differs between two equal runs; says whether anything did."""
    before = path.read_text()
    after = normalised(nbformat.reads(before, as_version=4), path.stem)
    if after != before:
        write_whole(path, after.encode())
    return after != before


def normalised(notebook: NotebookNode, name: str) -> str:
    """A notebook as text, without what differs between two equal runs.

    Outputs and execution counts stay. Warnings, views of widgets, timings, the version of the
    language, and traces of the tools go; ids of cells become the notebook's number and their place.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for place, cell in enumerate(notebook.cells):
        cell.id = f"{name[:2]}-{place:02d}"
        held = {key: cell.metadata[key] for key in ("recorded", "tags") if cell.metadata.get(key)}
        cell.metadata = held
        if cell.cell_type == "code":
            cell.outputs = _steady(cell.outputs)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _steady(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Outputs without warnings and widgets; text that came in pieces is one piece."""
    steady: list[NotebookNode] = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or WIDGET in data:
            continue
        if steady and output.output_type == steady[-1].output_type == "stream":
            steady[-1].text += output.text
        else:
            steady.append(output)
    return steady
