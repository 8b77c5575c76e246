"""A table of measurements as a scheduler takes it in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mllm_sched.arms import ArmSpace
from mllm_sched.measurement import check_quantity


def rows(
    table: pd.DataFrame, cells: ArmSpace, quantities: Sequence[str], *, merged: bool
) -> list[tuple[int, dict[str, float]]]:
    """Cell and values of every run; no values where it failed.

    Parameters
    ----------
    table
        With a column for every factor of the cells and every quantity.
    cells
        Contexts and arms.
    quantities
        What to take from the table.
    merged
        Make one run of all on the same cell: their geometric mean, or a failure if all failed.

    Raises
    ------
    ValueError
        For a level that the cells do not have, or a value that is not above 0.
    """
    runs = [
        (
            cells.arm(**{name: row[name] for name in cells.names}).index,
            {} if _failed(row) else {name: check_quantity(name, row[name]) for name in quantities},
        )
        for row in table.to_dict("records")
    ]
    if not merged:
        return runs
    by_cell: dict[int, list[dict[str, float]]] = {}
    for cell, values in runs:
        by_cell.setdefault(cell, []).append(values)
    return [(cell, _mean([v for v in values if v])) for cell, values in by_cell.items()]


def _failed(row: dict[str, object]) -> bool:
    """An empty reason reads as NaN from a file."""
    reason = row.get("failed")
    return bool(reason) and not pd.isna(reason)


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    """Geometric mean of every quantity; nothing of nothing."""
    if not runs:
        return {}
    return {name: float(np.exp(np.mean(np.log([run[name] for run in runs])))) for name in runs[0]}
