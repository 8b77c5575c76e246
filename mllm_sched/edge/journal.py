"""What an agent decided, measured and answered, on disk before anyone acts on it.

An append-only table of events in SQLite, one transaction each, in a file that one process holds.
Beside it stand the answers of late, for callers that ask again, and the last snapshot of the
scheduler. Time is seconds of service, which go on over restarts and never step back.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from mllm_sched.atomic_io import locked
from mllm_sched.edge.journal_schema import (
    EVENT,
    AlreadyAnswered,
    Event,
    JournalError,
    Snapshot,
    StoredAnswer,
    as_json,
    broken,
    create,
    digest,
    errors_named,
    event_digest,
    event_of,
    meta,
    open_reader,
    open_writer,
)
from mllm_sched.edge.journal_table import read_journal

log = logging.getLogger(__name__)

__all__ = ["AlreadyAnswered", "Event", "Journal", "JournalError", "StoredAnswer", "read_journal"]


class ServiceClock:
    """A clock that goes on where the last process left it.

    Parameters
    ----------
    last_s
        What it showed when that was last written down.
    gap_s
        What the wall clock says has passed since; it counts if it is above 0.
    monotonic
        Seconds that pass evenly.

    Attributes
    ----------
    stepped_back_s
        How far the wall clock was set back meanwhile, else 0.

    Examples
    --------
    >>> ServiceClock(100.0, 20.0, monotonic=lambda: 5.0).now_s()
    120.0
    >>> ServiceClock(100.0, -20.0, monotonic=lambda: 5.0).now_s()
    100.0
    """

    def __init__(self, last_s: float, gap_s: float, monotonic: Callable[[], float]) -> None:
        self.stepped_back_s = max(-gap_s, 0.0)
        self._monotonic = monotonic
        self._began = monotonic()
        self._shown = last_s + max(gap_s, 0.0)
        self._base = self._shown

    def now_s(self) -> float:
        """Seconds; never less than at an earlier call."""
        self._shown = max(self._shown, self._base + self._monotonic() - self._began)
        return self._shown


DURABILITIES = ("process", "power")


class JournalFile:
    """Opened, and made if it is missing; see ``Journal`` for its parameters and errors.

    Attributes
    ----------
    lock
        Held over a write and whatever has to follow it before the next one.
    """

    def __init__(self, path: Path, *, durability: str, busy_s: float) -> None:
        if durability not in DURABILITIES:
            known = ", ".join(DURABILITIES)
            raise ValueError(f"durability={durability!r}: expected one of {known}")
        self.path, self.lock, self._reading = path, threading.RLock(), threading.Lock()
        with ExitStack() as opened:  # closed in the other order: the writer after the reader
            opened.enter_context(self._held())
            if not path.exists():
                create(path)
            writer = open_writer(path, durability=durability, busy_s=busy_s)
            self._database = opened.enter_context(closing(writer))
            self._reader = opened.enter_context(closing(open_reader(path)))
            self.set_meta("writer", str(os.getpid()))
            self._opened = opened.pop_all()

    def _held(self) -> IO[str]:
        holder = locked(self.path.with_name(f"{self.path.name}.lock"))
        if holder is not None:
            return holder
        writer = None
        if self.path.exists():
            with errors_named(self.path), closing(open_reader(self.path)) as database:
                writer = meta(database, self.path, "writer")
        raise JournalError(
            "locked",
            f"journal {self.path}: process {writer or 'unknown'} writes it; "
            "stop that agent, or give this one a journal of its own",
        )

    def meta(self, name: str) -> str | None:
        """A word about the journal itself, such as ``spec``; None if it was never written."""
        with self.lock, errors_named(self.path):
            return meta(self._database, self.path, name)

    def set_meta(self, name: str, value: str) -> None:
        """Write such a word."""
        with self.lock, errors_named(self.path):
            self._database.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)",
                (name, value, digest(value.encode())),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self.lock, errors_named(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _read(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The first row, read without waiting for who writes."""
        with self._reading, errors_named(self.path):
            row: tuple[Any, ...] | None = self._reader.execute(query, values).fetchone()
        return row

    def size_bytes(self) -> int:
        """Of the file and of what SQLite keeps beside it."""
        files = (self.path.with_name(f"{self.path.name}{end}") for end in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Let go of the file; everything is in it already."""
        with self.lock, self._reading:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


DAY_S = 86_400.0
PAGE = 1000  # events read, and pages given back to the disk, at a time


class Journal(JournalFile):
    """The one writer of a journal; others read it meanwhile with ``read_journal``.

    Parameters
    ----------
    path
        A file; it is made, with its folder, if it is missing. ``.lock``, ``-wal`` and ``-shm``
        stand beside it while it is written, and belong to it.
    durability
        ``process``: what is written survives the end of this process, however that comes; a power
        cut may take the last commits. ``power``: it survives that as well, at the price of waiting
        for the disk at every commit.
    busy_s
        How long a write waits for another connection that holds the file.
    keep_days
        Days of service after which events go. Only what the last snapshot covers is dropped, so
        the scheduler loses nothing; the rows of the table are gone, so export them before.
    keep_answers_s
        Seconds after which ``prune`` drops an answer; then it cannot be asked for again.
    wall, monotonic
        The clocks, in seconds.

    Raises
    ------
    JournalError
        See its ``reason``. Also if another process writes this journal.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Journal(f"{folder}/journal.db") as journal:
    ...     event = journal.append("started", {"by": "an example"})
    ...     [event.kind for event in journal.events()]
    ['started']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: str = "process",
        busy_s: float = 2.0,
        keep_days: float = 30.0,
        keep_answers_s: float = 3600.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("keep_days", keep_days), ("keep_answers_s", keep_answers_s)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected above 0")
        self.keep_days, self.keep_answers_s = keep_days, keep_answers_s
        self._wall = wall
        super().__init__(Path(path), durability=durability, busy_s=busy_s)
        try:
            self._clock = self._set_clock(monotonic)
        except BaseException:
            self.close()
            raise

    def _set_clock(self, monotonic: Callable[[], float]) -> ServiceClock:
        with errors_named(self.path):
            last = self._database.execute(
                "SELECT now_s, utc FROM events ORDER BY id DESC LIMIT 1"
            ).fetchone()
        last_s, utc = last or (0.0, self._wall())
        self._clock = ServiceClock(last_s, self._wall() - utc, monotonic)
        if self._clock.stepped_back_s:
            log.warning(
                "journal %s: the wall clock is %.1f s before its last event; "
                "seconds of service go on from there",
                self.path,
                self._clock.stepped_back_s,
            )
            self.append("clock", {"stepped_back_s": self._clock.stepped_back_s})
        return self._clock

    @property
    def stepped_back_s(self) -> float:
        """How far the wall clock was set back before this start, else 0."""
        return self._clock.stepped_back_s

    def now_s(self) -> float:
        """Seconds of service: they never step back, whatever the wall clock does.

        Within a process they pass evenly; a restart adds what the wall clock says has passed since
        the last event, or nothing if it was set back.
        """
        return self._clock.now_s()

    def append(
        self,
        kind: str,
        body: Mapping[str, Any],
        decision: int | None = None,
        now_s: float | None = None,
    ) -> Event:
        """Write an event; it is committed when this returns. Raises JournalError if it is not."""
        now_s = self.now_s() if now_s is None else now_s
        text = as_json(body)
        crc = event_digest(now_s, kind, decision, text.encode())
        row = (now_s, self._wall(), kind, decision, text, crc)
        with self.lock, errors_named(self.path):
            cursor = self._database.execute(
                "INSERT INTO events (now_s, utc, kind, decision, body, crc) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        return Event(int(cursor.lastrowid or 0), now_s, kind, decision, body)

    def events(self, after: int = 0) -> Iterator[Event]:
        """What was written after an event, in its order; JournalError if a body was damaged."""
        while rows := self._page(after):
            after = rows[-1][0]
            yield from (event_of(row, self.path) for row in rows)

    def _page(self, after: int) -> list[tuple[Any, ...]]:
        with self.lock, errors_named(self.path):
            return self._database.execute(
                f"SELECT {EVENT} FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, PAGE)
            ).fetchall()

    def answer(self, user: str, id: str) -> StoredAnswer | None:
        """What was answered to this request of this user, if it is still kept.

        It waits for nobody: neither for a write, nor for another process that holds the file.
        """
        row = self._read(
            "SELECT digest, tokens, finished, at_s FROM answers WHERE user = ? AND id = ?",
            (user, id),
        )
        if row is None:
            return None
        digest, tokens, finished, at_s = row
        return StoredAnswer(digest, tuple(np.frombuffer(tokens, "<i8").tolist()), finished, at_s)

    def keep_answer(
        self, user: str, id: str, digest: bytes, tokens: Sequence[int], finished: bytes
    ) -> None:
        """Keep an answer before its end is sent; AlreadyAnswered if there is one."""
        packed = np.asarray(tokens, dtype="<i8").tobytes()
        with self.lock, errors_named(self.path):
            try:
                self._database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                    (user, id, digest, packed, finished, self.now_s()),
                )
            except sqlite3.IntegrityError as error:
                message = f"request {id!r} of user {user!r}: answered before; send what is kept"
                raise AlreadyAnswered(message) from error

    def snapshot(self) -> Snapshot | None:
        """The last one; JournalError if it was damaged."""
        with self.lock, errors_named(self.path):
            row = self._database.execute("SELECT * FROM snapshots").fetchone()
        if row is None:
            return None
        after, scheduler, standing, crc = row
        if digest(scheduler, standing.encode()) != crc:
            raise broken(self.path, f"the snapshot after event {after} is damaged")
        return Snapshot(after, scheduler, json.loads(standing))

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Put it in the place of the last one, and drop events that were kept long enough."""
        standing = as_json(snapshot.standing)
        crc = digest(snapshot.scheduler, standing.encode())
        with self._transaction():
            self._database.execute("DELETE FROM snapshots")
            self._database.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)",
                (snapshot.after, snapshot.scheduler, standing, crc),
            )
            # The last event stays, for the clock goes on from it.
            self._drop("events", "id", "now_s", self.keep_days * DAY_S, snapshot.after)
        self._give_back()

    def prune(self) -> None:
        """Drop the answers that were kept long enough; to be called now and then."""
        with self._transaction():
            self._drop("answers", "rowid", "at_s", self.keep_answers_s, sys.maxsize)
        self._give_back()

    def _give_back(self) -> None:
        """Room in the file that nothing fills any more, to the disk."""
        with self.lock, errors_named(self.path):
            self._database.execute(f"PRAGMA incremental_vacuum({PAGE})").fetchall()

    def _drop(self, table: str, key: str, time_s: str, keep_s: float, until: int) -> None:
        """Delete what is older than that, before a row; keys and times rise together."""
        young = self._database.execute(
            f"SELECT {key} FROM {table} WHERE {time_s} >= ? ORDER BY {key} LIMIT 1",
            (self.now_s() - keep_s,),
        ).fetchone()
        before = until if young is None else min(until, young[0])
        self._database.execute(f"DELETE FROM {table} WHERE {key} < ?", (before,))
