"""The journal as a table: read while the agent writes it, or exported to open as ``trace:``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace, Factor, Level
from mllm_sched.edge.journal_schema import EVENT, Event, errors_named, event_of, meta, open_reader
from mllm_sched.edge.scheduler_spec import space_in
from mllm_sched.measurement import SCHEMA, TableError, write_table

log = logging.getLogger(__name__)

FIRST = ("event", "at_s", "user", "decision")
FACTS: dict[str, Any] = {  # what a row says of a task, and what if nobody said it
    **{"modality": "", "encoder": "", "size": 1, "background_load": 0.0, "batch": 1},
    **{"latency_s": math.nan, "energy_j": math.nan, "evidence": "", "energy_evidence": ""},
    **{"failed": "", "limit_s": math.nan},
}
LAST = ("reason", "safe_arms", "infeasible")


def read_journal(path: str | Path, after: int = 0, last: int = -1) -> pd.DataFrame:
    """All that was measured, one row a decision, in order.

    It reads what is committed at this moment. The agent that writes never waits for it, nor does it
    wait for the agent.

    Parameters
    ----------
    path
        Of the journal.
    after
        Rows after that ``event`` alone: for who reads again and again.
    last
        At most so many rows, the last ones; all if it is negative.

    Returns
    -------
    pandas.DataFrame
        ``event``, ``at_s`` (seconds of service), ``user``, ``decision``, a column for every factor
        and context, then the columns of ``measurement.py`` and ``batch``, ``limit_s``, ``reason``,
        ``safe_arms``, ``infeasible``. A run that was stopped has no latency; ``failed`` says
        beyond what it was stopped. Empty, with the columns of the arms, if nothing was measured.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    JournalError
        If it is damaged.
    """
    path = Path(path)
    with errors_named(path), closing(open_reader(path)) as database:
        words = meta(database, path, "spec")
        rows = database.execute(
            f"SELECT {EVENT} FROM events WHERE kind = 'measured' AND id > ? "
            "ORDER BY id DESC LIMIT ?",
            (after, last),
        ).fetchall()
    spec = json.loads(words) if words else {"factors": []}
    return table_of((event_of(row, path) for row in reversed(rows)), _names(spec))


def count_measured(path: str | Path) -> int:
    """How many rows ``read_journal`` would return."""
    path = Path(path)
    with errors_named(path), closing(open_reader(path)) as database:
        query = "SELECT COUNT(*) FROM events WHERE kind = 'measured'"
        return int(database.execute(query).fetchone()[0])


def read_spec(path: str | Path) -> Mapping[str, Any]:
    """What makes the scheduler of a journal, as ``SchedulerSpec.words``; empty before its start."""
    path = Path(path)
    with errors_named(path), closing(open_reader(path)) as database:
        words = meta(database, path, "spec")
    return json.loads(words) if words else {}


def table_of(measured: Iterable[Event], names: Iterable[str] = ()) -> pd.DataFrame:
    """Measured events as a table; ``names`` are those of factors, for an empty one."""
    rows = [_row(event) for event in measured]
    columns = (*FIRST, *names, *FACTS, *LAST)
    return pd.DataFrame(rows, columns=None if rows else list(dict.fromkeys(columns)))


def _names(spec: Mapping[str, Any]) -> list[str]:
    return [factor["name"] for factor in (*spec.get("contexts", ()), *spec["factors"])]


def _row(event: Event) -> dict[str, Any]:
    body, told = event.body, event.body["told"]
    row = {
        **{"event": event.id, "at_s": event.now_s, "user": "", "decision": event.decision},
        **(body["context"] or {}),  # here for the order of the columns
        **body["levels"],
        **FACTS,
    }
    row |= {name: value for name, value in body["facts"].items() if name in row}
    row |= {"failed": told["failed"] or _stopped(told["above"])} | told["quantities"]
    row |= body["context"] or {}
    row["energy_evidence"] = row["energy_evidence"] or row["evidence"]
    return row | {name: body[name] for name in LAST}


def _stopped(above: Mapping[str, float] | None) -> str:
    beyond = ", ".join(f"{name} above {bound:g}" for name, bound in (above or {}).items())
    return f"stopped: {beyond}" if beyond else ""


Levels = tuple[tuple[Level, ...], ...]  # of every factor, those that are kept


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path
        The file.
    rows
        In it.
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
    """Write the measurements of a journal as a table, also while its agent runs.

    Users and times are left out; they are in ``read_journal``. Contexts are left out but for
    ``background_load`` and others that a table of measurements has.

    Parameters
    ----------
    path
        Of the journal.
    out
        ``.csv`` or ``.parquet``.
    complete
        A trace has an arm for every combination of its levels, but a scheduler runs few of them
        often and many never. Keep the largest part of the space all of whose arms were measured for
        every encoder: some levels of every factor, and all their combinations. Of two as large, the
        one with the lower levels. Else all rows are written, and the log says which arms lack.

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
    space = space_in(read_spec(path))
    done = _measured(table, space)
    levels = _largest(done, space) if complete else _used(table, space)
    kept = table[_within(table, space, levels)]
    columns = [name for name in kept if name in space.names or name in SCHEMA.columns]
    write_table(kept[columns], out)
    missing = _missing(done, space, levels)
    if missing:
        shown = "; ".join(missing[:3]) + ("; ..." if len(missing) > 3 else "")
        log.warning(
            "%s: lacks %d arms, so it does not open as a trace: %s. complete=True keeps a part "
            "that does",
            out,
            len(missing),
            shown,
        )
    return Exported(out, len(kept), dict(zip(space.names, levels, strict=True)), missing)


def _measured(table: pd.DataFrame, space: ArmSpace) -> NDArray[np.bool_]:
    """Whether every encoder was measured on each arm, shape: levels of every factor."""
    shape = [len(factor.levels) for factor in space.factors]
    done = np.ones(shape, dtype=bool)
    for _, rows in table.groupby("encoder"):
        seen = np.zeros(shape, dtype=bool)
        arms = rows[list(space.names)].drop_duplicates().itertuples(index=False)
        for arm in arms:
            seen[_place(space, tuple(arm))] = True
        done &= seen
    return done


def _place(space: ArmSpace, levels: Sequence[Level]) -> tuple[int, ...]:
    pairs = zip(space.factors, levels, strict=True)
    return tuple(factor.index(level) for factor, level in pairs)


def _used(table: pd.DataFrame, space: ArmSpace) -> Levels:
    """Levels that occur."""
    return tuple(
        tuple(level for level in factor.levels if (table[factor.name] == level).any())
        for factor in space.factors
    )


def _within(table: pd.DataFrame, space: ArmSpace, levels: Levels) -> pd.Series:
    inside = pd.Series(True, index=table.index)
    for name, kept in zip(space.names, levels, strict=True):
        inside &= table[name].isin(kept)
    return inside


def _missing(done: NDArray[np.bool_], space: ArmSpace, levels: Levels) -> tuple[str, ...]:
    arms = (dict(zip(space.names, combination, strict=True)) for combination in product(*levels))
    lacking = (space.arm(**arm) for arm in arms if not done[_place(space, tuple(arm.values()))])
    return tuple(str(arm) for arm in lacking)


def _largest(done: NDArray[np.bool_], space: ArmSpace) -> Levels:
    """The largest product of levels without a missing arm."""
    if not done.any():
        raise TableError("no arm was measured for every encoder; export without complete=True")
    best: tuple[int, tuple[tuple[int, ...], ...]] = (0, ())
    for chosen in _products(done, ()):
        size = int(np.prod([len(places) for places in chosen]))
        best = max(best, (size, chosen), key=lambda pair: pair[0])  # the first of equals
    pairs = zip(space.factors, best[1], strict=True)
    return tuple(_picked(factor, places) for factor, places in pairs)


def _picked(factor: Factor, places: Sequence[int]) -> tuple[Level, ...]:
    return tuple(factor.levels[place] for place in places)


def _products(
    done: NDArray[np.bool_], chosen: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every choice of levels, factor by factor, with all levels of the last that are then whole."""
    if done.ndim == 1:
        if done.any():
            yield (*chosen, tuple(np.flatnonzero(done).tolist()))
        return
    for places in _subsets(range(len(done))):
        rest: NDArray[np.bool_] = np.logical_and.reduce(done[list(places)])
        if rest.any():
            yield from _products(rest, (*chosen, places))


def _subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    sizes = range(1, len(items) + 1)
    return chain.from_iterable(combinations(items, size) for size in sizes)
