"""Jobs of a service: the answers to its requests, running and complete, none generated twice."""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import grpc

from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.wire import digest_of

REMEMBERED_BYTES = 64 << 20
JOB_BYTES = 3000  # of a job without tokens, as measured
REMEMBERED_IDS = 100_000


class RefusedError(Exception):
    """A request that is not served, with the status of the call."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Job:
    """The answer to one request, which any number of callers may follow from any token on.

    ``ends_s`` is the latest deadline of its callers, on the loop's clock.
    """

    def __init__(self, digest: bytes, ends_s: float) -> None:
        self.digest = digest
        self.ends_s = ends_s
        self.tokens = array("I")
        self.logits: dict[int, bytes] = {}  # by place, where they are wanted
        self.finished: pb.Finished | None = None
        self.failure: RefusedError | None = None
        self._changed = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.failure is not None

    @property
    def held_bytes(self) -> int:
        """Approximate memory that it takes."""
        held = sum(100 + len(logits) for logits in self.logits.values())
        return JOB_BYTES + self.tokens.itemsize * len(self.tokens) + held

    def add(self, token: int, logits: bytes = b"") -> None:
        """Append a token."""
        if logits:
            self.logits[len(self.tokens)] = logits
        self.tokens.append(token)
        self._wake()

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """A block that ends with TimeoutError at the latest deadline of its callers."""
        async with asyncio.timeout_at(self.ends_s) as self._deadline:
            try:
                yield
            finally:
                self._deadline = None

    def extend(self, ends_s: float) -> None:
        """Add a caller with this deadline."""
        self.ends_s = max(self.ends_s, ends_s)
        if self._deadline and not self._deadline.expired():
            self._deadline.reschedule(self.ends_s)

    def end(self, finished: pb.Finished | None = None, failure: RefusedError | None = None) -> None:
        """End the answer, complete or failed."""
        if failure is not None:  # whose frames would keep the request in memory
            failure.__traceback__ = failure.__context__ = failure.__cause__ = None
        self.finished, self.failure = finished, failure
        self._wake()

    async def follow(self, have: int, so_far: bytes = b"") -> AsyncIterator[pb.Event]:
        """Every event behind the first ``have`` tokens, as they come.

        ``so_far`` is the ``digest_of`` those tokens; not checked if empty. Raises RefusedError if
        the answer fails, is shorter, or began with other tokens.
        """
        checked = not (have and so_far)
        while True:
            if not checked and (self.finished or len(self.tokens) >= have):
                checked = True
                if digest_of(self.tokens[:have]) != so_far:
                    message = "the answer was made anew and begins differently; ask for all of it"
                    raise RefusedError(grpc.StatusCode.ABORTED, message)
            changed = self._changed
            while have < len(self.tokens):  # more may come while one is sent
                place, have = have, have + 1
                logits = self.logits.get(place, b"")
                yield pb.Event(token=pb.Token(index=place, token=self.tokens[place], logits=logits))
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
    """All jobs of a service; ``limit`` requests have a slot, from upload to end of answer."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._jobs: dict[str, Job] = {}
        self._forgotten: OrderedDict[str, bytes] = OrderedDict()
        self._given: OrderedDict[str, int] = OrderedDict()  # bytes of answers that are complete
        self._held = 0
        self._uploads: dict[tuple[str, bytes], Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, name: str, digest: bytes) -> Job | None:
        """The job of a request that was sent before.

        Raises RefusedError (ALREADY_EXISTS) if it had other bytes, or its answer was dropped.
        """
        job = self._jobs.get(name)
        known = job.digest if job else self._forgotten.get(name)
        if known is None or (job and known == digest):
            return job
        was = "sent before, with other bytes" if known != digest else "answered; its answer is gone"
        raise RefusedError(grpc.StatusCode.ALREADY_EXISTS, f"request {name} was {was}")

    def knows(self, name: str) -> bool:
        """Whether that request is being answered, or its answer is held."""
        return name in self._jobs

    def take(self, name: str, digest: bytes) -> Slot:
        """A slot for one more request; RefusedError (RESOURCE_EXHAUSTED) if there is none.

        A request that is sent again while its first upload hangs takes the slot of that upload.
        """
        if (older := self._uploads.get((name, digest))) is not None:
            older.give_way()
        if self.taken >= self.limit:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy: {self.limit} requests are served now"
            )
        slot = self._uploads[name, digest] = Slot(self, (name, digest))
        return slot

    def launch(
        self,
        name: str,
        digest: bytes,
        ends_s: float,
        slot: Slot,
        work: Callable[[Job], Coroutine[Any, Any, None]],
    ) -> Job:
        """Begin a job, unless it runs already; it goes on to its end, followed or not."""
        if (known := self.find(name, digest)) is not None:
            known.extend(ends_s)
            return known
        job = self._jobs[name] = Job(digest, ends_s)
        slot.kept = True
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
        self._given[name] = job.held_bytes
        self._held += job.held_bytes
        self._forget()

    def _forget(self) -> None:
        while self._held > REMEMBERED_BYTES and len(self._given) > 1:  # the newest stays
            name, size = self._given.popitem(last=False)
            self._held -= size
            self._forgotten[name] = self._jobs.pop(name).digest
        while len(self._forgotten) > REMEMBERED_IDS:
            self._forgotten.popitem(last=False)

    async def drain(self, grace_s: float) -> None:
        """Wait until no request is served any more; stop jobs that take longer than that."""
        ends_s = asyncio.get_running_loop().time() + grace_s
        while self.taken and asyncio.get_running_loop().time() < ends_s:
            await asyncio.sleep(0.02)
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class Slot:
    """A place among the requests that are served, free at the end of the block unless launched.

    ``also`` is closed when it is free again.
    """

    def __init__(self, jobs: Jobs, request: tuple[str, bytes]) -> None:
        self._jobs, self._request = jobs, request
        self.kept = self._free = False
        self._upload: asyncio.Timeout | None = None
        self.also = ExitStack()
        jobs.taken += 1

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self._uploaded()
        if not self.kept:
            self.release()

    @asynccontextmanager
    async def upload(self, ends_s: float) -> AsyncIterator[None]:
        """A block that ends when the same request comes again (TimeoutError), or at ``ends_s``.

        The latter is a RefusedError (DEADLINE_EXCEEDED).
        """
        try:
            async with asyncio.timeout_at(ends_s) as self._upload:
                try:
                    yield
                finally:
                    self._upload = None
            if self._free:  # complete by now, but a newer upload has its place
                raise TimeoutError
        except TimeoutError:
            if asyncio.get_running_loop().time() < ends_s:
                raise  # too slow, or sent again
            late = "the deadline passed before the whole message came"
            raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, late) from None

    def give_way(self) -> None:
        """Stop this upload: the same request came by another connection."""
        self._uploaded()
        self.release()
        if self._upload and not self._upload.expired():
            self._upload.reschedule(asyncio.get_running_loop().time())

    def _uploaded(self) -> None:
        if self._jobs._uploads.get(self._request) is self:
            del self._jobs._uploads[self._request]

    def release(self) -> None:
        """Free it; a second time does nothing."""
        if not self._free:
            self._free = True
            self._jobs.taken -= 1
            self.also.close()
