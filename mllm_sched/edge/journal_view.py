"""The journal as a table, while the agent writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from mllm_sched.edge.journal_records import Event
from mllm_sched.edge.journal_schema import EVENT, errors_named, event_of, meta, open_reader

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
