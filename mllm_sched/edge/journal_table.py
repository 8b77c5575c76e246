"""The measurements in a journal as a table: read while the agent writes, summed up, or exported."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace, Level
from mllm_sched.edge.journal_schema import (
    EVENT,
    Event,
    event_of,
    open_reader,
    read_meta,
    sqlite_errors,
)
from mllm_sched.edge.scheduler_spec import space_of
from mllm_sched.measurement import SCHEMA, TableError, write_table

log = logging.getLogger(__name__)

FIRST = ("event", "at_s", "user", "decision")
FACTS: dict[str, Any] = {  # columns of a task, with their defaults
    **{"modality": "", "encoder": "", "size": 1, "background_load": 0.0, "batch": 1},
    **{"latency_s": math.nan, "energy_j": math.nan, "evidence": "", "energy_evidence": ""},
    **{"failed": "", "limit_s": math.nan},
}
LAST = ("reason", "safe_arms", "infeasible")
RECENT = 20_000  # measurements that a summary covers
QUANTITIES = ["latency_s", "energy_j"]


def read_journal(path: str | Path, after: int = 0, last: int = -1) -> pd.DataFrame:
    """All measurements committed at this moment, one row a decision, in order.

    The agent that writes never waits for it, nor does it wait for the agent.

    Parameters
    ----------
    after, last
        Only rows after that ``event``, and only so many, the last ones; all if it is negative.

    Returns
    -------
    pandas.DataFrame
        ``event``, ``at_s`` (seconds of service), ``user``, ``decision``, a column for every factor
        and context, then the columns of ``measurement.py`` and ``batch``, ``limit_s``, ``reason``,
        ``safe_arms``, ``infeasible``. A run that was stopped has no latency; ``failed`` says
        above what it was stopped. Empty, with the columns of the arms, if nothing was measured.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    JournalError
        If it is damaged.
    """
    path = Path(path)
    query = (
        f"SELECT {EVENT} FROM events WHERE kind = 'measured' AND id > ? ORDER BY id DESC LIMIT ?"
    )
    with sqlite_errors(path), closing(open_reader(path)) as database:
        spec = json.loads(read_meta(database, path, "spec") or '{"factors": []}')
        rows = database.execute(query, (after, last)).fetchall()
    factors = (*spec.get("contexts", ()), *spec["factors"])
    names = (*FIRST, *(factor["name"] for factor in factors), *FACTS, *LAST)
    table = table_of(event_of(row, path) for row in reversed(rows))
    return table if rows else pd.DataFrame(columns=list(dict.fromkeys(names)))


def count_measured(path: str | Path) -> int:
    """How many rows ``read_journal`` would return."""
    path = Path(path)
    with sqlite_errors(path), closing(open_reader(path)) as database:
        query = "SELECT COUNT(*) FROM events WHERE kind = 'measured'"
        return int(database.execute(query).fetchone()[0])


def read_spec(path: str | Path) -> Mapping[str, Any]:
    """The scheduler of a journal, as ``SchedulerSpec.to_json``; empty before its first start."""
    path = Path(path)
    with sqlite_errors(path), closing(open_reader(path)) as database:
        return json.loads(read_meta(database, path, "spec") or "{}")


def table_of(measured: Iterable[Event]) -> pd.DataFrame:
    """Measured events as a table."""
    return pd.DataFrame([_row(event) for event in measured])


def _row(event: Event) -> dict[str, Any]:
    body, told = event.body, event.body["told"]
    context = body["context"] or {}
    above = [f"{name} above {bound:g}" for name, bound in (told["above"] or {}).items()]
    row = {
        **{"event": event.id, "at_s": event.now_s, "user": "", "decision": event.decision},
        **context,  # here for the order of the columns
        **body["levels"],
        **FACTS,
    }
    row |= {name: value for name, value in body["facts"].items() if name in row}
    row["failed"] = told["failed"] or (f"stopped: {', '.join(above)}" if above else "")
    row |= told["quantities"] | context
    row["energy_evidence"] = row["energy_evidence"] or row["evidence"]
    return row | {name: body[name] for name in LAST}


def summarize(path: str | Path, recent: int = RECENT) -> pd.DataFrame:
    """Means of the last measurements in a journal, for the schedulers of other devices.

    However much was measured, there are no more rows than arms times contexts and modalities, and
    no column says who asked.

    Returns
    -------
    pandas.DataFrame
        A table of ``measurement.py``: geometric means of the last ``recent`` runs that did not
        fail; where all failed, why the last one did. ``runs`` counts them all.
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
    """A table that was exported.

    Attributes
    ----------
    path, rows
        The file, and the number of rows in it.
    levels
        Of every factor, those in it.
    missing
        Arms of these levels that lack a measurement of some encoder; ``trace:`` refuses the file as
        long as there are any.
    """

    path: Path
    rows: int
    levels: dict[str, tuple[Level, ...]]
    missing: tuple[str, ...]


def export(path: str | Path, out: str | Path, *, complete: bool = False) -> Exported:
    """Write the measurements of a journal as a table of ``measurement.py``.

    Users and times are left out, as are contexts that such a table does not have.

    Parameters
    ----------
    path, out
        Of the journal, whose agent may be running, and of the table, ``.csv`` or ``.parquet``.
    complete
        A trace has an arm for every combination of its levels, but a scheduler runs few of them
        often and many never. Keep the largest product of levels all of whose arms were measured
        for every encoder; of two as large, the one with the lower levels. Otherwise all rows are
        written, and the log says which arms are missing.

    Raises
    ------
    TableError
        If nothing was measured, or a row lacks its modality, encoder or evidence.
    ValueError
        If ``out`` is of another kind.
    """
    out = Path(out)
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{out}: expected a name that ends in .csv or .parquet")
    table = read_journal(path)
    if table.empty:
        raise TableError(f"journal {path}: nothing was measured yet; export it later")
    space = space_of(read_spec(path))
    done = _measured(table, space)
    if complete:
        kept = _largest_product(done)
    else:
        kept = tuple(
            tuple(sorted({factor.index(level) for level in table[factor.name]}))
            for factor in space.factors
        )
    levels = {
        factor.name: tuple(factor.levels[place] for place in places)
        for factor, places in zip(space.factors, kept, strict=True)
    }
    rows = table[np.logical_and.reduce([table[name].isin(levels[name]) for name in levels])]
    columns = [name for name in rows if name in space.names or name in SCHEMA.columns]
    write_table(rows[columns], out)
    arms = (space.arm(**dict(zip(levels, arm, strict=True))) for arm in product(*levels.values()))
    missing = tuple(
        str(arm) for arm, cell in zip(arms, product(*kept), strict=True) if not done[cell]
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


Places = tuple[tuple[int, ...], ...]  # of the levels that are kept, for every factor


def _largest_product(done: NDArray[np.bool_]) -> Places:
    """Levels of every factor whose combinations were all measured, as many as possible."""
    if not done.any():
        raise TableError("no arm was measured for every encoder; export without complete=True")
    return max(_products(done, ()), key=lambda kept: math.prod(map(len, kept)))  # first of equals


def _products(done: NDArray[np.bool_], kept: Places) -> Iterator[Places]:
    """Every choice of levels, factor by factor, with all levels of the last that are then whole."""
    if done.ndim == 1:
        if done.any():
            yield (*kept, tuple(np.flatnonzero(done).tolist()))
        return
    sizes = range(1, len(done) + 1)
    for places in chain.from_iterable(combinations(range(len(done)), size) for size in sizes):
        rest: NDArray[np.bool_] = np.logical_and.reduce(done[list(places)])
        if rest.any():
            yield from _products(rest, (*kept, places))
