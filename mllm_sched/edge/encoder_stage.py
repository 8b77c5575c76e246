"""Requests wait for the encoder here: in a fair order, bounded, and not beyond their deadline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.edge.admission import Admission
from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import ClosedLoop, Done, Work
from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull
from mllm_sched.edge.metrics import Metrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.runtime import Prepared
from mllm_sched.edge.service import now_s
from mllm_sched.edge.users import User


@dataclass(eq=False)
class Pending:
    """The items of a request on their way through the encoder.

    Attributes
    ----------
    task
        The request's key in the journal.
    ends_s
        When its user stops waiting.
    came_s
        When it came.
    queued_s
        How long it waited for the encoder.
    """

    task: str
    user: User
    prepared: Sequence[Prepared]
    ends_s: float
    came_s: float = field(default_factory=now_s)
    queued_s: float = 0.0
    encoded: asyncio.Future[list[Done]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), repr=False
    )

    @property
    def works(self) -> list[Work]:
        """Its items, one after another."""
        return [
            Work(f"{self.task}/{place}", self.user.name, prepared, self.ends_s)
            for place, prepared in enumerate(self.prepared)
        ]


class EncoderStage:
    """A device, its loop, and who waits for it.

    Parameters
    ----------
    loop
        Encodes.
    queue
        Those who wait.
    sizes
        How many items of a kind may be encoded in one call.
    answering
        Takes the features. While it is full, nothing is encoded.
    metrics
        Told of the queue.
    """

    def __init__(
        self,
        loop: ClosedLoop,
        queue: FairQueue,
        sizes: Sequence[int],
        answering: Answering,
        metrics: Metrics,
    ) -> None:
        self.loop, self.queue, self.sizes = loop, queue, tuple(sizes)
        self.answering, self.metrics = answering, metrics
        self.admission = Admission()
        self._device = ThreadPoolExecutor(1, "device")
        self._arrived = asyncio.Event()
        self._running: list[Pending] = []

    @property
    def running(self) -> int:
        """Requests that are being encoded."""
        return len(self._running)

    @property
    def backlog_s(self) -> float:
        """Seconds of encoding that wait or run, as predicted."""
        return self.queue.backlog_s + self._running_s()

    async def encode(self, pending: Pending) -> list[Done]:
        """The features of all items, once it was the request's turn.

        Raises
        ------
        Refusal
            If it cannot be answered in time, or there is no room for it.
        JournalError, EncodingFailed
            See ``ClosedLoop.encode``.
        """
        entry = self._entry(pending)
        self.admission.check(entry, self.queue.ahead_s(entry) + self._running_s(), now_s())
        try:
            pushed_out = self.queue.put(entry)
        except QueueFull as error:
            raise Refusal("queue-full", str(error), retry_s=self.backlog_s) from None
        if pushed_out:
            gone = Refusal("pushed-out", "others had waited with less; send less at a time")
            _hand_out(pushed_out.item, gone)
        self._arrived.set()
        self._show()
        try:
            return await pending.encoded
        finally:
            self.queue.remove(entry)
            self._show()

    async def dispatch(self) -> None:
        """Encode what waits, for ever: the next in the fair order when the encoder is free."""
        while True:
            await self._arrived.wait()
            await self.answering.room()
            self._shed_late()
            if entries := self.queue.take(now_s(), self.sizes):
                await self._encode(entries)
            else:
                self._arrived.clear()

    def _entry(self, pending: Pending) -> Entry:
        kinds = [self.loop.runtime.kind(one) for one in pending.prepared]
        return Entry(
            user=pending.user.name,
            kind=kinds[0] if len(kinds) == 1 else None,
            arrived_s=now_s(),
            ends_s=pending.ends_s,
            cost_s=self._cost_s(pending),
            item=pending,
            weight=pending.user.weight,
        )

    def _cost_s(self, pending: Pending) -> float:
        return sum(self.admission.encode_s(one.modality) for one in pending.prepared)

    def _running_s(self) -> float:
        return sum(self._cost_s(pending) for pending in self._running)

    def _shed_late(self) -> None:
        for entry in self.queue.expired(now_s(), self.admission.service_s):
            late = Refusal("too-late", "it waited too long to be answered in time")
            _hand_out(entry.item, late)

    async def _encode(self, entries: Sequence[Entry]) -> None:
        """Encode the requests of a batch, in the device's thread, and hand out what came of it."""
        pendings = self._running = [entry.item for entry in entries]
        begun_s = now_s()
        for entry in entries:
            entry.item.queued_s = begun_s - entry.arrived_s
        self._show()
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._device, self._encode_all, pendings)
        except Exception as error:  # whatever it is, those who wait are told
            results = [error] * len(pendings)
        finally:
            self._running = []
        took_s = (now_s() - begun_s) / len(entries)
        for entry, result in zip(entries, results, strict=True):
            self.queue.charge(entry, took_s)
            _hand_out(entry.item, result)

    def _encode_all(self, pendings: Sequence[Pending]) -> list[Any]:
        """Several requests of one item each in one call, or the items of one request in turn."""
        if len(pendings) > 1:
            return [[done] for done in self._measured([one.works[0] for one in pendings])]
        return [[self._measured([work])[0] for work in pendings[0].works]]

    def _measured(self, works: Sequence[Work]) -> list[Done]:
        done = self.loop.encode(works)
        for work, one in zip(works, done, strict=True):
            energy_j = one.run.energy_j or math.nan  # 0: the meter was gone
            self.admission.encoded(work.prepared.modality, one.run.latency_s, energy_j)
        return done

    def _show(self) -> None:
        running = self.running + self.answering.running
        self.metrics.queue(len(self.queue), running, self.backlog_s)

    def close(self) -> None:
        """Let the call under way end."""
        self._device.shutdown(wait=True)


def _hand_out(pending: Pending, result: Any) -> None:
    """To whoever still waits."""
    if pending.encoded.done():
        return
    if isinstance(result, Exception):
        pending.encoded.set_exception(result)
    else:
        pending.encoded.set_result(result)
