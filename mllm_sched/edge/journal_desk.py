"""The journal as the event loop uses it, and whether it can be written now."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from mllm_sched.edge.journal import Journal, JournalError, StoredAnswer
from mllm_sched.edge.journal_schema import digest, errors_named
from mllm_sched.edge.logs import say

log = logging.getLogger(__name__)
LOOK_S = 0.5  # between two looks whether the journal can be written
PATIENCE_S = 0.5  # of a look; a journal that is locked for longer is down


class JournalDesk:
    """Takes calls to threads of their own, so that nothing else waits where they do.

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
        self.journal, self.why_not = journal, ""
        self._on_down = on_down
        self._readers = ThreadPoolExecutor(2, "journal-reader")
        self._writer = ThreadPoolExecutor(1, "journal-writer")
        self._looker = ThreadPoolExecutor(1, "journal-looker")

    async def answer(self, user: str, name: str) -> StoredAnswer | None:
        """See ``Journal.answer``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.journal.answer, user, name)

    async def keep(
        self, user: str, name: str, sha256: bytes, tokens: Sequence[int], finished: bytes
    ) -> None:
        """See ``Journal.keep_answer``."""
        answer = user, name, sha256, tokens, finished
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self.journal.keep_answer, *answer)
        except JournalError as error:
            self.failed(error)
            raise

    def failed(self, error: JournalError) -> None:
        """A write failed: the journal is down until a look says otherwise."""
        was, self.why_not = self.why_not, f"the journal cannot be written: it is {error.reason}"
        if not was:
            say(log, "journal-down", "error", why=str(error), reason=error.reason)
            self._on_down()

    async def watch(self) -> None:
        """Look again and again whether it can be written, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._looker, self._look)
            except JournalError as error:
                self.failed(error)
            else:
                self.why_not = ""
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        """Write a word, by a connection of its own: the journal's may be waiting."""
        path, word = self.journal.path, repr(time.time())
        uri = f"{path.resolve().as_uri()}?mode=rw"
        with errors_named(path), closing(sqlite3.connect(uri, PATIENCE_S, uri=True)) as database:
            row = "looked", word, digest(word.encode())
            with database:
                database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)

    def close(self) -> None:
        """Wait for nothing more."""
        for threads in (self._readers, self._writer, self._looker):
            threads.shutdown(wait=False, cancel_futures=True)
