"""The file of a journal: its tables, its records, and what its errors mean."""

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

VERSION = 1
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


class AlreadyAnswered(ValueError):
    """An answer to this request of this user is stored already."""


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
    """The error for a damaged file."""
    return JournalError("broken", f"journal {path}: {what}; {ADVICE['broken']}")


@dataclass(frozen=True)
class Event:
    """One row of the journal.

    Attributes
    ----------
    id
        Increasing.
    now_s
        Seconds of service.
    kind
        ``started``, ``decided``, ``measured``, ``cancelled``, ``warm-start``, ``limits``,
        ``clock`` (the wall clock was set back), ``resumed`` (a write failed, and the scheduler was
        rebuilt) or ``relearned`` (another version of the scheduler learned from the measurements).
    decision
        ``Decision.id``, if it concerns one.
    body
        Everything else, as JSON.
    """

    id: int
    now_s: float
    kind: str
    decision: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was sent: digest of its request, tokens, and the last message."""

    digest: bytes
    tokens: tuple[int, ...]
    finished: bytes
    at_s: float


@dataclass(frozen=True)
class Snapshot:
    """A scheduler after the event ``after``, and the recovery state that belongs to it."""

    after: int
    scheduler: bytes
    recovery: Mapping[str, Any]


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without entries that are None, NaN or infinite, which JSON cannot hold."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        return value.tolist()
    raise TypeError(f"{value!r}: a {type(value).__name__} has no place in a journal")


ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain, allow_nan=False)


def checksum(*parts: bytes) -> int:
    """CRC-32 of all parts together."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


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
INSERT INTO meta VALUES ('schema', '{VERSION}', {checksum(str(VERSION).encode())});
COMMIT;
"""
EVENT = "id, now_s, kind, decision, CAST(body AS BLOB), crc"  # columns that ``event_of`` reads


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """A block whose SQLite errors become ``JournalError``."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own message quotes damaged bytes
        raise broken(path, "damaged: text that is none") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.ProgrammingError):  # a wrong call, not a journal's state
            raise
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        reason = REASONS.get(code, "broken")
        if code == sqlite3.SQLITE_IOERR and _disk_full(path.parent):
            reason = "full"  # no room for the -shm file is reported as a failed write
        raise JournalError(reason, f"journal {path}: {error}; {ADVICE[reason]}") from error


def _disk_full(folder: Path) -> bool:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize < 64 * 1024


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, which no writer waits for."""
    if not path.is_file():
        raise FileNotFoundError(f"journal {path}: no such file; the agent makes it when it starts")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def read_meta(database: sqlite3.Connection, path: Path, name: str) -> str | None:
    """A value of the table ``meta``; None if it was never written."""
    row = database.execute("SELECT value, crc FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value, crc = str(row[0]), row[1]
    if checksum(value.encode()) != crc:
        raise broken(path, f"its {name} is damaged")
    return value


def write_meta(database: sqlite3.Connection, name: str, value: str) -> None:
    """Set a value of the table ``meta``."""
    row = name, value, checksum(value.encode())
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)


def event_checksum(now_s: float, kind: str, decision: int | None, body: bytes) -> int:
    """CRC-32 of an event."""
    return checksum(f"{now_s!r} {kind} {decision} ".encode(), body)


def event_of(row: tuple[Any, ...], path: Path) -> Event:
    """The event in a row of the columns ``EVENT``; JournalError if it is damaged."""
    id_, now_s, kind, decision, body, crc = row
    if event_checksum(now_s, kind, decision, body) != crc:
        raise broken(path, f"event {id_} is damaged")
    return Event(id_, now_s, kind, decision, json.loads(body))


def create(path: Path) -> None:
    """Make an empty journal, readable by its owner only. It appears whole or not at all."""
    leftover = path.with_name(f"{path.name}-wal")
    if leftover.exists():
        raise broken(leftover, f"belongs to {path.name}, which is gone")
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.unfinished")
    try:
        unfinished.touch(mode=0o600)  # SQLite gives the files beside it the same
        with sqlite_errors(path), closing(sqlite3.connect(unfinished)) as database:
            database.executescript(TABLES)
        unfinished.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JournalError("full", f"journal {path}: {error}; {ADVICE['full']}") from error
        raise
    finally:
        for name in ("", "-wal", "-shm"):
            unfinished.with_name(f"{unfinished.name}{name}").unlink(missing_ok=True)


def prepare(database: sqlite3.Connection, path: Path, durability: str) -> None:
    """Set a writing connection up, and check the file; JournalError if it cannot be used."""
    if database.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise broken(path, "its file system has no shared memory, as SQLite's WAL needs")
    database.execute(f"PRAGMA synchronous = {DURABILITY[durability]}")
    database.execute("PRAGMA journal_size_limit = 16777216")  # of the -wal file, once read back
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise broken(path, f"damaged: {found}")
    try:
        version = read_meta(database, path, "schema")
    except sqlite3.OperationalError as error:
        raise broken(path, f"a database, but no journal ({error})") from error
    if version != str(VERSION):
        raise JournalError(
            "broken",
            f"journal {path}: of schema {version}; this package writes schema {VERSION}. "
            "Use the version of the package that wrote it, or start with a new journal",
        )
