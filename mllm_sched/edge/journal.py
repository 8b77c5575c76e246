"""The journal of an agent: decisions, measurements and answers, on disk before anyone acts on them.

An SQLite file that one process writes: an append-only table of events, one transaction each, the
answers of the last hour, and the last snapshot of the scheduler. Its times are seconds of service,
which go on over restarts and never step back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from mllm_sched.atomic_io import locked
from mllm_sched.edge.journal_schema import (
    ENCODER,
    EVENT,
    AlreadyAnswered,
    Event,
    JournalError,
    Snapshot,
    StoredAnswer,
    broken,
    checksum,
    create,
    event_checksum,
    event_of,
    open_reader,
    prepare,
    read_meta,
    sqlite_errors,
    write_meta,
)
from mllm_sched.edge.journal_table import read_journal
from mllm_sched.edge.logs import say

log = logging.getLogger(__name__)

__all__ = ["AlreadyAnswered", "AsyncJournal", "Journal", "JournalError", "read_journal"]

DAY_S = 86_400.0
PAGE = 1000  # events read, and pages given back to the disk, at a time
PROBE_S = 0.5  # between two tries whether the journal can be written, and the longest one waits


class Journal:
    """The only writer of a journal; others read it meanwhile with ``read_journal``.

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
        Days of service after which events are dropped, if the last snapshot covers them. Export
        the table before: the scheduler loses nothing, the table does.
    keep_answers_s
        Seconds after which ``prune`` drops an answer.
    wall, monotonic
        The clocks, in seconds.

    Attributes
    ----------
    lock
        Held over a write and whatever must follow before the next one.
    stepped_back_s
        By how much the wall clock was set back before this start, else 0.

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
        if durability not in ("process", "power"):
            raise ValueError(f"durability={durability!r}: expected one of process, power")
        for name, value in (("keep_days", keep_days), ("keep_answers_s", keep_answers_s)):
            if not value > 0:
                raise ValueError(f"{name}={value}: expected above 0")
        self.path, self.lock, self._reading = Path(path), threading.RLock(), threading.Lock()
        self.keep_days, self.keep_answers_s = keep_days, keep_answers_s
        self._wall, self._monotonic = wall, monotonic
        with ExitStack() as opened:  # closed in the other order: the writer after the reader
            opened.enter_context(self._held())
            if not self.path.exists():
                create(self.path)
            if self.path.stat().st_size == 0:
                raise broken(self.path, "empty, which no journal ever is")
            with sqlite_errors(self.path):
                self._database = opened.enter_context(
                    closing(
                        sqlite3.connect(
                            self.path,
                            timeout=busy_s,
                            isolation_level=None,
                            check_same_thread=False,
                        )
                    )
                )
                prepare(self._database, self.path, durability)
            self._reader = opened.enter_context(closing(open_reader(self.path)))
            self.set_meta("writer", str(os.getpid()))
            self._set_clock()
            self._opened = opened.pop_all()

    def _held(self) -> IO[str]:
        holder = locked(self.path.with_name(f"{self.path.name}.lock"))
        if holder is not None:
            return holder
        writer = None
        if self.path.exists():
            with sqlite_errors(self.path), closing(open_reader(self.path)) as database:
                writer = read_meta(database, self.path, "writer")
        raise JournalError(
            "locked",
            f"journal {self.path}: process {writer or 'unknown'} writes it; "
            "stop that agent, or give this one a journal of its own",
        )

    def _set_clock(self) -> None:
        with sqlite_errors(self.path):
            last = self._database.execute(
                "SELECT now_s, utc FROM events ORDER BY id DESC LIMIT 1"
            ).fetchone()
        last_s, utc = last or (0.0, self._wall())
        gap_s = self._wall() - utc
        self.stepped_back_s = max(-gap_s, 0.0)
        self._began_s = self._monotonic()
        self._base_s = self._latest_s = last_s + max(gap_s, 0.0)
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
        now_s = self._base_s + self._monotonic() - self._began_s
        self._latest_s = max(self._latest_s, now_s)
        return self._latest_s

    def meta(self, name: str) -> str | None:
        """A value about the journal itself, such as ``spec``; None if it was never written."""
        with self.lock, sqlite_errors(self.path):
            return read_meta(self._database, self.path, name)

    def set_meta(self, name: str, value: str) -> None:
        """Write such a value."""
        with self.lock, sqlite_errors(self.path):
            write_meta(self._database, name, value)

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
        crc = event_checksum(now_s, kind, decision, text.encode())
        row = (now_s, self._wall(), kind, decision, text, crc)
        with self.lock, sqlite_errors(self.path):
            cursor = self._database.execute(
                "INSERT INTO events (now_s, utc, kind, decision, body, crc) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        return Event(int(cursor.lastrowid or 0), now_s, kind, decision, body)

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events after that id, in order; JournalError if one is damaged."""
        query = f"SELECT {EVENT} FROM events WHERE id > ? ORDER BY id LIMIT {PAGE}"
        while True:
            with self.lock, sqlite_errors(self.path):
                rows = self._database.execute(query, (after,)).fetchall()
            if not rows:
                return
            after = rows[-1][0]
            yield from (event_of(row, self.path) for row in rows)

    def answer(self, user: str, id: str) -> StoredAnswer | None:
        """The answer to this request of this user, if it is still stored.

        It waits for nobody: neither for a write, nor for another process that holds the file.
        """
        query = "SELECT digest, tokens, finished, at_s FROM answers WHERE user = ? AND id = ?"
        with self._reading, sqlite_errors(self.path):
            row = self._reader.execute(query, (user, id)).fetchone()
        if row is None:
            return None
        digest, tokens, finished, at_s = row
        return StoredAnswer(digest, tuple(np.frombuffer(tokens, "<i8").tolist()), finished, at_s)

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
        with self.lock, sqlite_errors(self.path):
            row = self._database.execute("SELECT * FROM snapshots").fetchone()
        if row is None:
            raise broken(self.path, "it has no snapshot")
        after, scheduler, recovery, crc = row
        if checksum(scheduler, recovery.encode()) != crc:
            raise broken(self.path, f"the snapshot after event {after} is damaged")
        return Snapshot(after, scheduler, json.loads(recovery))

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the last snapshot, and drop old events that it covers."""
        recovery = ENCODER.encode(snapshot.recovery)
        crc = checksum(snapshot.scheduler, recovery.encode())
        with self._transaction():
            self._database.execute("DELETE FROM snapshots")
            self._database.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)",
                (snapshot.after, snapshot.scheduler, recovery, crc),
            )
            # The last event stays, for the clock goes on from it.
            self._drop("events", "id", "now_s", self.keep_days * DAY_S, snapshot.after)

    def prune(self) -> None:
        """Drop answers older than ``keep_answers_s``."""
        with self._transaction():
            self._drop("answers", "rowid", "at_s", self.keep_answers_s, sys.maxsize)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction; then the room that it freed goes back to the disk."""
        with self.lock, sqlite_errors(self.path):
            with self._database:  # commits, or rolls back
                self._database.execute("BEGIN IMMEDIATE")
                yield
            self._database.execute(f"PRAGMA incremental_vacuum({PAGE})").fetchall()

    def _drop(self, table: str, key: str, time_s: str, keep_s: float, below: int) -> None:
        """Delete rows older than ``keep_s`` with keys below that; keys and times rise together."""
        self._database.execute(
            f"DELETE FROM {table} WHERE {key} < MIN(?1, IFNULL("
            f"(SELECT {key} FROM {table} WHERE {time_s} >= ?2 ORDER BY {key} LIMIT 1), ?1))",
            (below, self.now_s() - keep_s),
        )

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


class AsyncJournal:
    """A journal for an event loop: each call runs in a thread, so that no other work waits for it.

    Parameters
    ----------
    journal
        Read and written.
    on_down
        Called when it cannot be written any more.

    Attributes
    ----------
    why_not
        Why it cannot be written; empty if it can.
    """

    def __init__(self, journal: Journal, on_down: Callable[[], None]) -> None:
        self.journal, self.path, self.why_not = journal, journal.path, ""
        self._on_down = on_down
        self._readers = ThreadPoolExecutor(3, "journal-reader")  # never wait for a lock for long
        self._writer = ThreadPoolExecutor(1, "journal-writer")

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
                write_meta(database, "looked", repr(time.time()))

    def close(self) -> None:
        """Wait for nothing more."""
        for threads in (self._readers, self._writer):
            threads.shutdown(wait=False, cancel_futures=True)
