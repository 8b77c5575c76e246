"""The file of a journal, held by the one process that writes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Self

from mllm_sched.edge.journal_records import digest
from mllm_sched.edge.journal_schema import (
    JournalError,
    create,
    errors_named,
    meta,
    open_reader,
    open_writer,
)
from mllm_sched.files import locked

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
