"""The journal of an agent: decisions, measurements and answers, on disk before anyone acts on them.

An SQLite file that one process writes: an append-only table of events, one transaction each, the
answers of the last hour, and the last snapshot of the scheduler. Its times are seconds of service,
which go on over restarts and never step back.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from uuid import uuid4
from zlib import crc32

import numpy as np
import pandas as pd

from mllm_sched.atomic_io import locked
from mllm_sched.edge.logs import say

log = logging.getLogger(__name__)

VERSION = 1
DAY_S = 86_400.0
FREED_PAGES = 1000  # given back to the disk at a time
PROBE_S = 0.5  # between two tries whether the journal can be written
DURABILITY = {"process": "NORMAL", "power": "FULL"}  # as SQLite's ``synchronous``
REASONS = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
}
ADVICE = {
    "full": "make room on the disk, or keep fewer days; it goes on by itself then",
    "locked": "end the other connection's transaction; it goes on by itself then",
    "broken": "put the file aside, then restore a copy or start with a new journal",
}
TABLES = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    now_s REAL NOT NULL,          -- seconds of service
    utc REAL NOT NULL,            -- seconds since 1970 by the wall clock, as it stood
    kind TEXT NOT NULL,
    decision INTEGER,
    body TEXT NOT NULL,           -- JSON
    crc INTEGER NOT NULL          -- of all but id and utc
);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are only added'); END;
CREATE TABLE answers (
    user TEXT NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL, tokens BLOB NOT NULL,
    finished BLOB NOT NULL, at_s REAL NOT NULL, UNIQUE (user, id)
);
CREATE TABLE snapshots (
    after INTEGER PRIMARY KEY, scheduler BLOB NOT NULL, standing TEXT NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL);
INSERT INTO meta VALUES ('schema', '{VERSION}', {crc32(str(VERSION).encode())});
COMMIT;
"""


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return value.tolist()
    raise TypeError(f"{value!r}: a {type(value).__name__} has no place in a journal")


ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain, allow_nan=False)


class AlreadyAnswered(ValueError):
    """An answer to this request of this user is stored already."""


class JournalError(OSError):
    """A journal that cannot be written or read now.

    Its ``reason`` is ``full`` (no room on the disk), ``locked`` (another process or connection
    holds it) or ``broken`` (damaged, of another kind, or its disk fails).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Event:
    """One row of the journal.

    Its kind is ``started``, ``decided``, ``measured``, ``cancelled``, ``warm-start``, ``limits``,
    ``clock`` (the wall clock was set back), ``resumed`` (a write failed, and the scheduler was
    rebuilt) or ``relearned`` (another version of the scheduler learned from the measurements).
    """

    id: int  # increasing
    now_s: float  # seconds of service
    kind: str
    decision: int | None  # ``Decision.id``, if it concerns one
    body: Mapping[str, Any]  # everything else, as JSON


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent: digest of its request, tokens, and the last message."""

    digest: bytes
    tokens: tuple[int, ...]
    finished: bytes


@dataclass(frozen=True)
class Snapshot:
    """A scheduler after the event ``after``, and the recovery state that belongs to it."""

    after: int
    scheduler: bytes
    recovery: Mapping[str, Any]


class Journal:
    """The only writer of a journal; others read it meanwhile with ``read_journal``.

    Parameters
    ----------
    path
        Made, with its folder, if it is missing. While it is written, ``.lock``, ``-wal`` and
        ``-shm`` stand beside it and belong to it.
    durability
        ``process``: what is written survives the end of this process, however that comes.
        ``power``: it survives a power cut as well, and every commit waits for the disk.
    busy_s
        How long a write waits for another connection that holds the file.
    keep_days
        Days of service after which events are dropped, if the last snapshot covers them. The
        scheduler loses nothing, the table does: export it before.
    keep_answers_s
        Seconds after which ``prune`` drops an answer.

    Raises
    ------
    JournalError
        See its ``reason``. Also if another process writes this journal.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: str = "process",
        busy_s: float = 2.0,
        keep_days: float = 30.0,
        keep_answers_s: float = 3600.0,
    ) -> None:
        if durability not in DURABILITY:
            raise ValueError(f"durability={durability!r}: expected one of {', '.join(DURABILITY)}")
        for name, value in (("keep_days", keep_days), ("keep_answers_s", keep_answers_s)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected above 0")
        self.path, self._reading = Path(path), threading.Lock()
        self.lock = threading.RLock()  # held over a write and what must follow before the next
        self.keep_days, self.keep_answers_s = keep_days, keep_answers_s
        with ExitStack() as opened:  # closed in the other order: the writer after the reader
            opened.enter_context(_held(self.path))
            if not self.path.exists():
                _create(self.path)
            if self.path.stat().st_size == 0:
                raise _broken(self.path, "empty, which no journal ever is")
            with sqlite_errors(self.path):
                database = sqlite3.connect(
                    self.path, busy_s, isolation_level=None, check_same_thread=False
                )
                self._database = opened.enter_context(closing(database))
                _prepare(database, self.path, durability)
            self._reader = opened.enter_context(closing(open_reader(self.path)))
            self.set_meta("writer", str(os.getpid()))
            self._set_clock()
            self._opened = opened.pop_all()

    def _set_clock(self) -> None:
        with sqlite_errors(self.path):
            last = self._database.execute(
                "SELECT now_s, utc FROM events ORDER BY id DESC LIMIT 1"
            ).fetchone()
        last_s, utc = last or (0.0, time.time())
        gap_s = time.time() - utc
        self.stepped_back_s = max(-gap_s, 0.0)  # of the wall clock, before this start
        self._began_s, self._base_s = time.monotonic(), last_s + max(gap_s, 0.0)
        if self.stepped_back_s:
            log.warning(
                "journal %s: the wall clock is %.1f s before its last event; "
                "seconds of service go on from there",
                self.path,
                self.stepped_back_s,
            )
            self.append("clock", {"stepped_back_s": self.stepped_back_s})

    def now_s(self) -> float:
        """Seconds of service: they never step back, whatever the wall clock does.

        Within a process they follow the monotonic clock; a restart adds what the wall clock says
        has passed since the last event, or nothing if it was set back.
        """
        return self._base_s + (time.monotonic() - self._began_s)

    def set_meta(self, name: str, value: str) -> None:
        """Write a value that ``read_meta`` returns."""
        with self.lock, sqlite_errors(self.path):
            _write_meta(self._database, name, value)

    def append(
        self,
        kind: str,
        body: Mapping[str, Any],
        decision: int | None = None,
        now_s: float | None = None,
    ) -> Event:
        """Write an event, at ``now_s`` or now; it is committed when this returns."""
        now_s = self.now_s() if now_s is None else now_s
        text = ENCODER.encode(body)
        crc = _event_crc(now_s, kind, decision, text.encode())
        row = (now_s, time.time(), kind, decision, text, crc)
        with self.lock, sqlite_errors(self.path):
            cursor = self._database.execute(
                "INSERT INTO events (now_s, utc, kind, decision, body, crc) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        return Event(int(cursor.lastrowid or 0), now_s, kind, decision, body)

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events after that id, in order; JournalError if one is damaged."""
        return _events(self.path, "WHERE id > ? ORDER BY id", after)

    def answer(self, user: str, id: str) -> StoredAnswer | None:
        """The answer to this request of this user, if it is still stored.

        It waits for nobody: neither for a write, nor for another process that holds the file.
        """
        query = "SELECT digest, tokens, finished FROM answers WHERE user = ? AND id = ?"
        with self._reading, sqlite_errors(self.path):
            row = self._reader.execute(query, (user, id)).fetchone()
        if row is None:
            return None
        digest, tokens, finished = row
        return StoredAnswer(digest, tuple(np.frombuffer(tokens, "<i8").tolist()), finished)

    def keep_answer(
        self, user: str, id: str, digest: bytes, tokens: Sequence[int], finished: bytes
    ) -> None:
        """Store an answer before its end is sent; AlreadyAnswered if there is one."""
        packed = np.asarray(tokens, dtype="<i8").tobytes()
        with self.lock, sqlite_errors(self.path):
            try:
                self._database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                    (user, id, digest, packed, finished, self.now_s()),
                )
            except sqlite3.IntegrityError as error:
                message = f"request {id!r} of user {user!r}: answered before; send what is kept"
                raise AlreadyAnswered(message) from error

    def snapshot(self) -> Snapshot:
        """The last one; JournalError if it is damaged or missing."""
        query = "SELECT after, CAST(scheduler AS BLOB), CAST(standing AS BLOB), crc FROM snapshots"
        with _reading(self.path) as database:
            row = database.execute(query).fetchone()
        if row is None:
            raise _broken(self.path, "it has no snapshot")
        after, scheduler, recovery, crc = row
        if crc32(scheduler + recovery) != crc:
            raise _broken(self.path, f"the snapshot after event {after} is damaged")
        return Snapshot(after, scheduler, json.loads(recovery))

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the last snapshot, and drop old events that it covers."""
        recovery = ENCODER.encode(snapshot.recovery)
        crc = crc32(snapshot.scheduler + recovery.encode())
        with self._transaction():
            self._database.execute("DELETE FROM snapshots")
            self._database.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)",
                (snapshot.after, snapshot.scheduler, recovery, crc),
            )
            # The last event stays, for the clock goes on from it. Ids and times rise together.
            self._database.execute(
                "DELETE FROM events WHERE id < MIN(?1, IFNULL("
                "(SELECT id FROM events WHERE now_s >= ?2 ORDER BY id LIMIT 1), ?1))",
                (snapshot.after, self.now_s() - self.keep_days * DAY_S),
            )

    def prune(self) -> None:
        """Drop answers older than ``keep_answers_s``."""
        since_s = self.now_s() - self.keep_answers_s
        with self._transaction():
            self._database.execute("DELETE FROM answers WHERE at_s < ?", (since_s,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction; then the room that it freed goes back to the disk."""
        with self.lock, sqlite_errors(self.path):
            with self._database:  # commits, or rolls back
                self._database.execute("BEGIN IMMEDIATE")
                yield
            self._database.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()

    def size_bytes(self) -> int:
        """Of the file and of what SQLite keeps beside it."""
        files = (self.path.with_name(f"{self.path.name}{end}") for end in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Release the file."""
        with self.lock, self._reading:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_meta(path: Path, name: str) -> str | None:
    """A value about a journal itself, such as ``spec``; None if it was never written."""
    with _reading(path) as database:
        row = database.execute("SELECT value, crc FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value, crc = str(row[0]), row[1]
    if crc32(value.encode()) != crc:
        raise _broken(path, f"its {name} is damaged")
    return value


def read_spec(path: str | Path) -> Mapping[str, Any]:
    """The scheduler of a journal, as ``SchedulerSpec.to_json``; empty before its first start."""
    spec: Mapping[str, Any] = json.loads(read_meta(Path(path), "spec") or "{}")
    return spec


def count_measured(path: str | Path) -> int:
    """How many rows ``read_journal`` would return."""
    with _reading(Path(path)) as database:
        query = "SELECT COUNT(*) FROM events WHERE kind = 'measured'"
        return int(database.execute(query).fetchone()[0])


FIRST = ("event", "at_s", "user", "decision")
FACTS: dict[str, Any] = {  # columns of a task, with their defaults
    **{"modality": "", "encoder": "", "size": 1, "background_load": 0.0, "batch": 1},
    **{"latency_s": math.nan, "energy_j": math.nan, "evidence": "", "energy_evidence": ""},
    **{"failed": "", "limit_s": math.nan},
}
LAST = ("reason", "safe_arms", "infeasible")


def read_journal(path: str | Path, last: int = -1) -> pd.DataFrame:
    """All measurements committed at this moment, one row a decision, in order.

    Only the ``last`` ones, if that is not negative. It does not wait for the agent that writes, nor
    does the agent wait for it. Raises FileNotFoundError if there is no journal, and JournalError if
    it is damaged.

    Returns
    -------
    pandas.DataFrame
        ``event``, ``at_s`` (seconds of service), ``user``, ``decision``, a column for every factor
        and context, then the columns of ``measurement.py`` and ``batch``, ``limit_s``, ``reason``,
        ``safe_arms``, ``infeasible``. A run that was stopped has no latency; ``failed`` says
        above what it was stopped. Empty, with the columns of the arms, if nothing was measured.
    """
    spec = read_spec(path)
    events = list(_events(Path(path), "WHERE kind = 'measured' ORDER BY id DESC LIMIT ?", last))
    if events:
        return table_of(reversed(events))
    factors = (factor["name"] for key in ("contexts", "factors") for factor in spec.get(key, ()))
    return pd.DataFrame(columns=list(dict.fromkeys([*FIRST, *factors, *FACTS, *LAST])))


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


class AsyncJournal:
    """A journal for an event loop: each call runs in a thread, so that no other work waits for it.

    Threads of its own: those of the loop may all be busy with decoding. ``on_down`` is called when
    it can be written no longer.
    """

    def __init__(self, journal: Journal, on_down: Callable[[], None]) -> None:
        self.journal, self.path = journal, journal.path
        self.why_not = ""  # why it cannot be written
        self._on_down = on_down
        self._readers = ThreadPoolExecutor(3, "journal-reader")  # never wait for a lock for long
        self._writer = ThreadPoolExecutor(1, "journal-writer")  # one waits for a lock, at most

    async def answer(self, user: str, name: str) -> StoredAnswer | None:
        """See ``Journal.answer``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.journal.answer, user, name)

    async def keep_answer(
        self, user: str, name: str, digest: bytes, tokens: Sequence[int], finished: bytes
    ) -> None:
        """See ``Journal.keep_answer``."""
        answer = user, name, digest, tokens, finished
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self.journal.keep_answer, *answer)
        except JournalError as error:
            self.failed(error)
            raise

    def failed(self, error: JournalError) -> None:
        """A write failed: the journal counts as down until ``watch`` can write again."""
        was, self.why_not = self.why_not, f"the journal cannot be written: it is {error.reason}"
        if not was:
            say(log, "journal-down", "error", why=str(error), reason=error.reason)
            self._on_down()

    async def watch(self) -> None:
        """Try again and again whether it can be written, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._readers, self._probe)
            except JournalError as error:
                self.failed(error)
            else:
                self.why_not = ""
            await asyncio.sleep(PROBE_S)

    def _probe(self) -> None:
        """Write a value, by a connection of its own: the journal's may be waiting."""
        uri = f"{self.path.resolve().as_uri()}?mode=rw"
        with sqlite_errors(self.path), closing(sqlite3.connect(uri, PROBE_S, uri=True)) as database:
            with database:
                _write_meta(database, "looked", repr(time.time()))

    def close(self) -> None:
        """Wait for nothing more."""
        for threads in (self._readers, self._writer):
            threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """A block whose SQLite errors become ``JournalError``."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own message quotes damaged bytes
        raise _broken(path, "damaged: text that is none") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.ProgrammingError):  # a wrong call, not a journal's state
            raise
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        reason = REASONS.get(code, "broken")
        room = os.statvfs(path.parent)
        if code == sqlite3.SQLITE_IOERR and room.f_bavail * room.f_frsize < 64 * 1024:
            reason = "full"  # no room for the -shm file is reported as a failed write
        raise JournalError(reason, f"journal {path}: {error}; {ADVICE[reason]}") from error


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, which no writer waits for."""
    if not path.is_file():
        raise FileNotFoundError(f"journal {path}: no such file; the agent makes it when it starts")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with sqlite_errors(path), closing(open_reader(path)) as database:
        yield database


def _events(path: Path, which: str, parameter: int) -> Iterator[Event]:
    """Events of a journal, each checked."""
    query = f"SELECT id, now_s, kind, decision, CAST(body AS BLOB), crc FROM events {which}"
    with _reading(path) as database:
        for id_, now_s, kind, decision, body, crc in database.execute(query, (parameter,)):
            if _event_crc(now_s, kind, decision, body) != crc:
                raise _broken(path, f"event {id_} is damaged")
            yield Event(id_, now_s, kind, decision, json.loads(body))


def _event_crc(now_s: float, kind: str, decision: int | None, body: bytes) -> int:
    return crc32(f"{now_s!r} {kind} {decision} ".encode() + body)


def _write_meta(database: sqlite3.Connection, name: str, value: str) -> None:
    row = name, value, crc32(value.encode())
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)


def _broken(path: Path, what: str) -> JournalError:
    return JournalError("broken", f"journal {path}: {what}; {ADVICE['broken']}")


def _held(path: Path) -> IO[str]:
    """The writer's lock."""
    holder = locked(path.with_name(f"{path.name}.lock"))
    if holder is not None:
        return holder
    writer = read_meta(path, "writer") if path.exists() else None
    raise JournalError(
        "locked",
        f"journal {path}: process {writer or 'unknown'} writes it; "
        "stop that agent, or give this one a journal of its own",
    )


def _create(path: Path) -> None:
    """Make an empty journal, readable by its owner only. It appears whole or not at all."""
    leftover = path.with_name(f"{path.name}-wal")
    if leftover.exists():
        raise _broken(leftover, f"belongs to {path.name}, which is gone")
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.unfinished")
    try:
        unfinished.touch(mode=0o600)  # SQLite gives the files beside it the same
        with sqlite_errors(path), closing(sqlite3.connect(unfinished)) as database:
            database.executescript(TABLES)
        unfinished.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JournalError("full", f"journal {path}: full; {ADVICE['full']}") from error
        raise
    finally:
        for end in ("", "-wal", "-shm"):
            unfinished.with_name(f"{unfinished.name}{end}").unlink(missing_ok=True)


def _prepare(database: sqlite3.Connection, path: Path, durability: str) -> None:
    """Set a writing connection up, and check the file."""
    if database.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise _broken(path, "its file system has no shared memory, as SQLite's WAL needs")
    database.execute(f"PRAGMA synchronous = {DURABILITY[durability]}")
    database.execute("PRAGMA journal_size_limit = 16777216")  # of the -wal file, once read back
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _broken(path, f"damaged: {found}")
    if not database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
        raise _broken(path, "a database, but no journal")
    version = read_meta(path, "schema")
    if version != str(VERSION):
        raise JournalError(
            "broken",
            f"journal {path}: of schema {version}; this package writes schema {VERSION}. "
            "Use the version of the package that wrote it, or start with a new journal",
        )
