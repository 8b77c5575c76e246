"""Answers in the making and answers given, by request: none is ever made twice."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import grpc

from mllm_sched.pipeline.proto import node_pb2 as pb

REMEMBERED_BYTES = 64 << 20
REMEMBERED_IDS = 100_000


class RefusedError(Exception):
    """A request that is not served, with the status that says why."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Job:
    """The answer to one request; any number of callers may follow it, from any token on."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.tokens: list[pb.Token] = []
        self.finished: pb.Finished | None = None
        self.failure: RefusedError | None = None
        self._changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.failure is not None

    @property
    def bytes(self) -> int:
        """Roughly what it holds in memory."""
        return 1000 + sum(100 + len(token.logits) for token in self.tokens)

    def add(self, token: pb.Token) -> None:
        """One more token."""
        self.tokens.append(token)
        self._wake()

    def end(self, finished: pb.Finished | None = None, failure: RefusedError | None = None) -> None:
        """No more tokens: the answer is complete, or it failed."""
        self.finished, self.failure = finished, failure
        self._wake()

    async def follow(self, have: int) -> AsyncIterator[pb.Event]:
        """Every event behind the first ``have`` tokens, as they come.

        Raises RefusedError if the answer fails, or has no such token.
        """
        while True:
            changed = self._changed
            while have < len(self.tokens):  # more may come while one is sent
                have += 1
                yield pb.Event(token=self.tokens[have - 1])
            if self.failure is not None:
                raise self.failure
            if self.finished is not None:
                if have > len(self.tokens):
                    message = f"have={have}: the answer has {len(self.tokens)} tokens"
                    raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, message)
                yield pb.Event(finished=self.finished)
                return
            await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Jobs:
    """All jobs of a node.

    Parameters
    ----------
    limit
        Requests at a time, from their first piece to the end of their answer.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._jobs: dict[str, Job] = {}
        self._forgotten: OrderedDict[str, bytes] = OrderedDict()
        self._given: OrderedDict[str, int] = OrderedDict()  # bytes of answers that are complete
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, name: str, digest: bytes) -> Job | None:
        """The job of that request, if it was sent before.

        Raises
        ------
        RefusedError
            ALREADY_EXISTS, if the id belongs to other bytes, or its answer was given long ago.
        """
        job = self._jobs.get(name)
        known = job.digest if job else self._forgotten.get(name)
        if known is not None and known != digest:
            raise RefusedError(
                grpc.StatusCode.ALREADY_EXISTS, f"request {name} was sent before, with other bytes"
            )
        if known is not None and job is None:
            raise RefusedError(
                grpc.StatusCode.ALREADY_EXISTS, f"request {name} was answered; its answer is gone"
            )
        return job

    def take(self) -> Slot:
        """A place for one more request; RefusedError, RESOURCE_EXHAUSTED, if there is none."""
        if self.taken >= self.limit:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy: {self.limit} requests are served now"
            )
        return Slot(self)

    def launch(
        self,
        name: str,
        digest: bytes,
        slot: Slot,
        work: Callable[[Job], Coroutine[Any, Any, None]],
    ) -> Job:
        """Begin an answer. It goes on to its end, whether someone follows it or not."""
        job = self._jobs[name] = Job(digest)
        slot.keep()
        task = asyncio.create_task(work(job))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(name, job, slot, task))
        return job

    def _done(self, name: str, job: Job, slot: Slot, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        slot.release()
        if not job.over:
            job.end(failure=RefusedError(grpc.StatusCode.UNAVAILABLE, "the node shuts down"))
        if job.failure is not None:  # sent again, it may succeed
            del self._jobs[name]
            return
        self._given[name] = job.bytes
        self._held += job.bytes
        self._forget()

    def _forget(self) -> None:
        """Answers given go, the oldest first, once they take too much memory; ids stay longer."""
        while self._held > REMEMBERED_BYTES:
            name, size = self._given.popitem(last=False)
            self._held -= size
            self._forgotten[name] = self._jobs.pop(name).digest
        while len(self._forgotten) > REMEMBERED_IDS:
            self._forgotten.popitem(last=False)

    async def drain(self, grace_s: float) -> None:
        """Wait for the answers in the making; stop those that take longer than that."""
        tasks = list(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class Slot:
    """A place among the requests that are served; given back on leaving, unless kept."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs: Jobs | None = jobs
        self._kept = False
        jobs.taken += 1

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.release()

    def keep(self) -> None:
        """Hold it beyond the end of the block."""
        self._kept = True

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            jobs.taken -= 1
