"""What a journal holds: its records, the tables of its file, what the errors of that file mean."""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4


class AlreadyAnswered(ValueError):
    """An answer to this request of this user is kept already."""


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes
    ----------
    id
        They rise.
    now_s
        Seconds of service; see ``Journal.now_s``.
    kind
        ``started``, ``decided``, ``measured``, ``cancelled``, ``warm-start``, ``limits``,
        ``clock`` (the wall clock was set back), ``resumed`` (a call failed, and memory was built
        anew from the journal) or ``relearned`` (another version of the rule learned from the
        measurements).
    decision
        ``Decision.id`` of what it is about, if it is about one.
    body
        All else, in words and numbers.
    """

    id: int
    now_s: float
    kind: str
    decision: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True)
class StoredAnswer:
    """An answer that was given: the digest of its request, its tokens, and its end as sent."""

    digest: bytes
    tokens: tuple[int, ...]
    finished: bytes
    at_s: float


@dataclass(frozen=True)
class Snapshot:
    """A scheduler as it was after an event, and what its learner knew besides."""

    after: int
    scheduler: bytes
    standing: Mapping[str, Any]


def as_json(body: Mapping[str, Any]) -> str:
    """Compact; numbers of NumPy as numbers. ValueError for NaN, which JSON has not."""
    return _ENCODER.encode(body)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not known: neither None, nor NaN, nor infinite."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def digest(*parts: bytes) -> int:
    """CRC-32 of all parts together."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return value.tolist()
    raise TypeError(f"{value!r}: a {type(value).__name__} has no place in a journal")


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain, allow_nan=False)


VERSION = 1

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
    crc INTEGER NOT NULL          -- of all but id and utc; see event_digest
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
INSERT INTO meta VALUES ('schema', '{VERSION}', {digest(str(VERSION).encode())});
COMMIT;
"""

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


class JournalError(OSError):
    """A journal that cannot be written or read now.

    Attributes
    ----------
    reason
        ``full``: no room on its disk. ``locked``: another process or connection holds it.
        ``broken``: damaged, of another kind, or its disk fails.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def broken(path: Path, what: str) -> JournalError:
    """The error for a file that is not as it should be."""
    return JournalError("broken", f"journal {path}: {what}; {ADVICE['broken']}")


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """A block whose SQLite errors become ``JournalError``."""
    try:
        yield
    except UnicodeDecodeError as error:  # of what SQLite has to say of damaged tables
        raise broken(path, "damaged: text that is none") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.ProgrammingError):  # a wrong call, not a journal's state
            raise
        reason = _reason(error, path)
        raise JournalError(reason, f"journal {path}: {error}; {ADVICE[reason]}") from error


def _reason(error: sqlite3.DatabaseError, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # none: text that is none
    kind = code & 0xFF  # without the details in the upper bytes
    if kind == sqlite3.SQLITE_IOERR and _disk_full(path.parent):
        return "full"  # no room for the index beside the file reads as a failed write
    return REASONS.get(kind, "broken")


def _disk_full(folder: Path) -> bool:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < 64 * 1024


def create(path: Path) -> None:
    """Make an empty journal, for the eyes of its owner: it holds what users were answered.

    It is there whole or not at all, so an empty file is a damaged one.
    """
    leftover = path.with_name(f"{path.name}-wal")
    if leftover.exists():
        raise broken(leftover, f"belongs to {path.name}, which is gone")
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.unfinished")
    try:
        unfinished.touch(mode=0o600)  # SQLite gives the files beside it the same
        with errors_named(path), closing(sqlite3.connect(unfinished)) as database:
            database.executescript(TABLES)
        unfinished.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JournalError("full", f"journal {path}: {error}; {ADVICE['full']}") from error
        raise
    finally:
        for name in ("", "-wal", "-shm"):
            unfinished.with_name(f"{unfinished.name}{name}").unlink(missing_ok=True)


def open_writer(path: Path, *, durability: str, busy_s: float) -> sqlite3.Connection:
    """The one connection that writes; each statement is a transaction of its own.

    Raises
    ------
    JournalError
        ``broken``, if the file is damaged, of a newer schema, or on a file system without WAL.
    """
    if path.stat().st_size == 0:
        raise broken(path, "empty, which no journal ever is")
    with errors_named(path):
        database = sqlite3.connect(
            path, timeout=busy_s, isolation_level=None, check_same_thread=False
        )
        try:
            _settle(database, path, durability)
            check(database, path)
        except BaseException:
            database.close()
            raise
    return database


def _settle(database: sqlite3.Connection, path: Path, durability: str) -> None:
    if database.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise broken(path, "its file system has no shared memory, as SQLite's WAL needs")
    database.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
    database.execute("PRAGMA journal_size_limit = 16777216")  # of the -wal file, once read back


def check(database: sqlite3.Connection, path: Path) -> None:
    """Raise ``JournalError`` if the file is damaged or of a newer schema."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise broken(path, f"damaged: {found}")
    try:
        version = meta(database, path, "schema")
    except sqlite3.OperationalError as error:
        raise broken(path, f"a database, but no journal ({error})") from error
    if version != str(VERSION):
        raise JournalError(
            "broken",
            f"journal {path}: of schema {version}; this package writes schema {VERSION}. "
            "Use the version of the package that wrote it, or start with a new journal",
        )


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, and that no writer waits for."""
    if not path.is_file():
        raise FileNotFoundError(f"journal {path}: no such file; the agent makes it when it starts")
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def meta(database: sqlite3.Connection, path: Path, name: str) -> str | None:
    """A word about the journal itself, if it was written down; JournalError if it was damaged."""
    row = database.execute("SELECT value, crc FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value, crc = str(row[0]), row[1]
    if digest(value.encode()) != crc:
        raise broken(path, f"its {name} is damaged")
    return value


def event_digest(now_s: float, kind: str, decision: int | None, body: bytes) -> int:
    """Of what an event says; when the wall clock says that it was is no matter."""
    return digest(f"{now_s!r} {kind} {decision} ".encode(), body)


EVENT = "id, now_s, kind, decision, CAST(body AS BLOB), crc"  # columns that ``event_of`` reads


def event_of(row: tuple[Any, ...], path: Path) -> Event:
    """The event in a row of ``EVENT``; JournalError if it was damaged."""
    id_, now_s, kind, decision, body, crc = row
    if event_digest(now_s, kind, decision, body) != crc:
        raise broken(path, f"event {id_} is damaged")
    return Event(id_, now_s, kind, decision, json.loads(body))
