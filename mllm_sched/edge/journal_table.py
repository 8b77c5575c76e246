"""The measurements in a journal summed up for the schedulers of others, or exported as a table."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace, Factor, Level
from mllm_sched.edge.journal import FIRST, LAST, read_journal, read_spec
from mllm_sched.measurement import SCHEMA, TableError, write_table

log = logging.getLogger(__name__)

RECENT = 20_000  # measurements that a summary covers
QUANTITIES = ["latency_s", "energy_j"]


def summarize(path: str | Path, recent: int = RECENT) -> pd.DataFrame:
    """Means of the last measurements in a journal, for the schedulers of other devices.

    A table of ``measurement.py`` with one row for each arm, context and modality, and no users:
    geometric means of the last ``recent`` runs that did not fail; where all failed, why the last
    one did. ``runs`` counts them all.
    """
    table = read_journal(path, last=recent)
    if table.empty:
        return table
    of_a_run = {*FIRST, *LAST, *QUANTITIES, "failed", "limit_s"}
    same = [name for name in table if name not in of_a_run]  # the arm and the task
    rows = [
        {**dict(zip(same, cell, strict=True)), **_mean(runs)}
        for cell, runs in table.groupby(same, sort=False, dropna=False)
    ]
    return pd.DataFrame(rows)


def _mean(runs: pd.DataFrame) -> dict[str, Any]:
    done = runs[runs["failed"] == ""]
    failed = runs["failed"].iloc[-1] if done.empty else ""
    means = np.exp(np.log(done[QUANTITIES].astype(float)).mean())  # NaN of none
    return {**means.to_dict(), "failed": failed, "runs": len(runs)}


@dataclass(frozen=True)
class Exported:
    """A table that was exported. As long as arms are missing, ``trace:`` refuses it."""

    path: Path
    rows: int
    levels: dict[str, tuple[Level, ...]]  # of every factor
    missing: tuple[str, ...]  # arms of these levels that lack a measurement of some encoder


def export(path: str | Path, out: str | Path, *, complete: bool = False) -> Exported:
    """Write the measurements of a journal as a table of ``measurement.py``.

    Users and times are left out, as are contexts that such a table does not have. The agent may be
    running. ``out`` is ``.csv`` or ``.parquet``.

    A trace has an arm for every combination of its levels, but a scheduler runs few of them often
    and many never. ``complete`` keeps the largest product of levels all of whose arms were measured
    for every encoder; of two as large, the one with the lower levels. Otherwise all rows are
    written, and the log says which arms are missing.

    Raises TableError if nothing was measured, or a row lacks its modality, encoder or evidence, and
    ValueError if ``out`` is of another kind.
    """
    out = Path(out)
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{out}: expected a name that ends in .csv or .parquet")
    table = read_journal(path)
    if table.empty:
        raise TableError(f"journal {path}: nothing was measured yet; export it later")
    space = ArmSpace([Factor(**factor) for factor in read_spec(path)["factors"]])
    done = _measured(table, space)
    if complete:
        kept = _largest_product(done)
    else:
        kept = [sorted({f.index(level) for level in table[f.name]}) for f in space.factors]
    levels = {
        factor.name: tuple(factor.levels[place] for place in places)
        for factor, places in zip(space.factors, kept, strict=True)
    }
    rows = table[np.logical_and.reduce([table[name].isin(levels[name]) for name in levels])]
    columns = [name for name in rows if name in space.names or name in SCHEMA.columns]
    write_table(rows[columns], out)
    arms = (space.arm(**dict(zip(levels, arm, strict=True))) for arm in product(*levels.values()))
    missing = tuple(
        str(arm) for arm, there in zip(arms, done[np.ix_(*kept)].flat, strict=True) if not there
    )
    if missing:
        log.warning(
            "%s: lacks %d arms, so it does not open as a trace: %s. complete=True keeps a part "
            "that does",
            out,
            len(missing),
            "; ".join(missing[:3]) + ("; ..." if len(missing) > 3 else ""),
        )
    return Exported(out, len(rows), levels, missing)


def _measured(table: pd.DataFrame, space: ArmSpace) -> NDArray[np.bool_]:
    """Whether each arm was measured for every encoder; an axis for every factor."""
    done = np.ones([len(factor.levels) for factor in space.factors], dtype=bool)
    for _, rows in table.groupby("encoder"):
        seen = np.zeros_like(done)
        columns = [rows[factor.name].map(factor.index) for factor in space.factors]
        seen[tuple(columns)] = True
        done &= seen
    return done


def _largest_product(done: NDArray[np.bool_]) -> list[list[int]]:
    """Levels of every factor whose combinations were all measured, as many as possible."""
    largest: list[list[int]] = []
    subsets = [
        chain.from_iterable(combinations(range(size), many) for many in range(1, size + 1))
        for size in done.shape[:-1]
    ]
    for kept in product(*subsets):
        whole = done[np.ix_(*kept, range(done.shape[-1]))].all(axis=tuple(range(len(kept))))
        found = [*map(list, kept), np.flatnonzero(whole).tolist()]
        if math.prod(map(len, found)) > math.prod(map(len, largest or [[]])):
            largest = found
    if not largest:
        raise TableError("no arm was measured for every encoder; export without complete=True")
    return largest
