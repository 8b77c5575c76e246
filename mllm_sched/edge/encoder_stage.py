"""Where requests wait for the encoder: in a fair order, bounded, and not beyond their deadline."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile

from mllm_sched.devices.model_encoders import Prepared
from mllm_sched.edge.admission import KINDS, UNKNOWN_S, Admission, Ewma, LetIn
from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import ClosedLoop, EncodedJob, EncodingJob
from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull
from mllm_sched.edge.monitor import Metrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import now_s
from mllm_sched.edge.users import User
from mllm_sched.pipeline.jobs import Job

LOOKS = 3  # calls of a size before it is judged
REST, LONGEST_REST = 64, 4096  # calls of a kind before a size that was too slow is tried again
TEXT_S = 0.001  # of encoding, for a request without items
SHED_S = 0.1  # between two looks for those who cannot be in time


@dataclass
class _Kind:
    """Calls of one kind of items; the dictionaries are by size."""

    calls: int = 0
    latency: defaultdict[int, Ewma] = field(default_factory=lambda: defaultdict(Ewma))
    rest: dict[int, int] = field(default_factory=dict)  # for how many calls, last time
    until: dict[int, int] = field(default_factory=dict)  # and until which call

    def rests(self, size: int) -> None:
        """Not to be run for a while, and then to be judged afresh."""
        self.rest[size] = min(2 * self.rest.get(size, REST // 2), LONGEST_REST)
        self.until[size] = self.calls + self.rest[size]
        self.latency.pop(size, None)


class BatchSizes:
    """Batch sizes whose calls kept the latency limit when they were tried last.

    Every item of a call waits for all of it. A size whose calls take longer than the limit in the
    mean, or fail, is not used for some calls: twice as many each time, up to ``LONGEST_REST``. A
    single item is always encoded; which arm keeps the limit is the scheduler's matter. ``sizes``
    are those that the encoder can run, 1 among them, ``limit_s`` is on the latency of a call.

    Examples
    --------
    >>> sizes = BatchSizes([1, 2, 4], limit_s=0.3)
    >>> for latency_s in (0.4, 0.5, 0.4):
    ...     sizes.took("photograph", 4, latency_s)
    >>> sizes.of("photograph"), sizes.of("clip")
    ((1, 2), (1, 2, 4))
    """

    def __init__(self, sizes: Sequence[int], limit_s: float) -> None:
        self.sizes, self.limit_s = tuple(sorted(sizes)), limit_s
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def of(self, kind: Hashable) -> tuple[int, ...]:
        """The sizes to choose from now, 1 among them; none beyond one that rests."""
        if (known := self._kinds.get(kind)) is None:
            return self.sizes
        return tuple(takewhile(lambda size: known.calls >= known.until.get(size, 0), self.sizes))

    def took(self, kind: Hashable, size: int, latency_s: float) -> None:
        """Count a call of that size."""
        known = self._called(kind)
        latency = known.latency[size]
        latency.add(latency_s)
        if size == 1 or latency.count < LOOKS:
            return
        if latency.mean > self.limit_s:
            known.rests(size)
        else:
            known.rest.pop(size, None)

    def failed(self, kind: Hashable, size: int) -> None:
        """Count a call of that size that failed."""
        known = self._called(kind)
        if size > 1:
            known.rests(size)

    def _called(self, kind: Hashable) -> _Kind:
        known = self._kinds.setdefault(kind, _Kind())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        known.calls += 1
        return known


@dataclass(eq=False)
class QueuedRequest:
    """A request on its way through the encoder; ``task`` is its key in the journal."""

    task: str
    user: User
    prepared: Sequence[Prepared]  # its items; none if it is text alone
    job: Job  # its answer, worth making as long as anyone waits for it
    came_s: float = field(default_factory=now_s)
    ahead_s: float = 0.0  # that what goes before it is predicted to take
    let_in: LetIn = LetIn.FITS
    queued_s: float = 0.0  # that it waited for the encoder so far
    free_s: float = 0.0  # when its last item was done, so that it waits again
    done: list[EncodedJob] = field(default_factory=list, repr=False)  # items so far
    encoded: asyncio.Future[list[EncodedJob]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), repr=False
    )


@dataclass(frozen=True, eq=False)
class QueuedItem:
    """The next item of a request, or only its answer if it has no items."""

    request: QueuedRequest
    place: int
    encode_s: float  # as predicted when it came to the queue

    @property
    def prepared(self) -> Prepared | None:
        """The item."""
        return self.request.prepared[self.place] if self.request.prepared else None

    @property
    def rest(self) -> Sequence[Prepared]:
        """Items after it."""
        return self.request.prepared[self.place + 1 :]


class EncoderStage:
    """A device, its loop, and who waits for it.

    A request has one place in the queue, for its next item: between two items of one, those of
    others have their turn. Requests without items wait as well, for a place among the answers.
    While ``answering``, which takes the features, is full, nothing is encoded. ``sizes`` are those
    of ``BatchSizes``.
    """

    def __init__(
        self,
        loop: ClosedLoop,
        queue: FairQueue,
        sizes: Sequence[int],
        answering: Answering,
        metrics: Metrics,
    ) -> None:
        self.loop, self.queue, self.sizes = loop, queue, BatchSizes(sizes, loop.limit_s)
        self.answering, self.metrics = answering, metrics
        self.admission = Admission()
        self._device = ThreadPoolExecutor(1, "device")
        self._arrived = asyncio.Event()
        self._waiting: dict[QueuedRequest, Entry] = {}
        self._running: list[QueuedItem] = []
        self._measured: set[str] = set()

    @property
    def running(self) -> int:
        """Requests that are being encoded."""
        return len(self._running)

    @property
    def backlog_s(self) -> float:
        """Predicted seconds until all that waits or runs is encoded."""
        later_s = sum(self._later_s(entry.item.rest) for entry in self._waiting.values())
        return self.admission.wait_s(self.queue.backlog_s + later_s + self._busy_s())

    def check_first(self, user: User, ends_s: float) -> None:
        """Refuse a request of a user before its upload, if there is no hope for any."""
        entry = Entry(user.name, None, now_s(), ends_s, UNKNOWN_S, weight=user.weight)
        self.admission.check_first(self._ahead_s(entry), now_s(), ends_s)

    async def encode(self, request: QueuedRequest) -> list[EncodedJob]:
        """The features of all items. Then it has a place among the answers, to be left in any case.

        Raises Refusal if it cannot be answered in time or the queue is full, and what
        ``ClosedLoop.encode`` raises.
        """
        entry = self._entry(request, 0)
        request.ahead_s = self._ahead_s(entry)
        request.let_in = self.admission.check(
            self._left_s(entry.item), entry.ends_s, request.ahead_s, now_s(), entry.kind
        )
        try:
            pushed_out = self._wait(entry)
        except QueueFull as error:
            raise Refusal("queue-full", str(error), retry_s=self.backlog_s) from None
        if pushed_out:
            gone = Refusal("pushed-out", "others had waited with less; send less at a time")
            self._end(pushed_out.item.request, gone)
        self._arrived.set()
        self._show()
        try:
            return await request.encoded
        finally:
            self._drop(request)
            self._show()

    def refuse_waiting(self, why: Refusal) -> None:
        """Send away all of whom nothing was encoded yet."""
        for request, entry in list(self._waiting.items()):
            if not entry.item.place:
                self._end(request, why)

    async def dispatch(self) -> None:
        """Encode what waits, for ever, in the fair order."""
        while True:
            await self._arrived.wait()
            await self.answering.room()
            self._shed_late()
            first = self.queue.first
            if entries := self.queue.take(now_s(), self.sizes.of(first.kind) if first else (1,)):
                await self._serve(entries)
            else:
                self._arrived.clear()

    async def shed(self) -> None:
        """Send those away who can no longer be answered in time, also while a call goes on."""
        while True:
            await asyncio.sleep(SHED_S)
            self._shed_late()

    def _entry(self, request: QueuedRequest, place: int) -> Entry:
        """Its cost is encoding, or with the last item its answer, if that takes longer."""
        prepared = request.prepared[place] if request.prepared else None
        item = QueuedItem(request, place, self._encode_s([prepared]) if prepared else TEXT_S)
        return Entry(
            user=request.user.name,
            kind=prepared.kind if prepared and self.loop.device.batches else None,
            arrived_s=now_s(),
            ends_s=request.job.ends_s,
            cost_s=self._scarce_s(item, item.encode_s),
            item=item,
            weight=request.user.weight,
        )

    def _scarce_s(self, item: QueuedItem, encode_s: float) -> float:
        return encode_s if item.rest else max(encode_s, self._place_s)

    def _later_s(self, rest: Sequence[Prepared]) -> float:
        """Of items that come to the queue only once those before them are encoded."""
        last_s = max(self._encode_s(rest[-1:]), self._place_s) if rest else 0.0
        return self._encode_s(rest[:-1]) + last_s

    @property
    def _place_s(self) -> float:
        """For how long an answer keeps a place among them from the rest, shared by all places."""
        return (self.admission.answer_s or UNKNOWN_S) / self.answering.at_once

    def _wait(self, entry: Entry) -> Entry | None:
        pushed_out = self.queue.put(entry)
        self._waiting[entry.item.request] = entry
        return pushed_out

    def _drop(self, request: QueuedRequest) -> None:
        if (entry := self._waiting.pop(request, None)) is not None:
            self.queue.remove(entry)

    def _end(self, request: QueuedRequest, why: Exception) -> None:
        self._drop(request)
        if not request.encoded.done():
            request.encoded.set_exception(why)

    def _ahead_s(self, entry: Entry) -> float:
        return self.queue.ahead_s(entry) + self._busy_s()

    def _busy_s(self) -> float:
        """Until the encoder is free, and a place among the answers."""
        running_s = self._encode_s(item.prepared for item in self._running if item.prepared)
        return max(running_s, 0.0 if self.answering.has_room else self._place_s)

    def _encode_s(self, items: Iterable[Prepared]) -> float:
        return sum(self.admission.encode_s(one.modality, one.kind) for one in items)

    def _left_s(self, item: QueuedItem) -> float:
        """Of encoding, for an item and those after it."""
        return item.encode_s + self._encode_s(item.rest)

    def _service_s(self, entry: Entry) -> float:
        let_in = entry.item.request.let_in
        return self.admission.service_s(self._left_s(entry.item), entry.kind, let_in)

    def _shed_late(self) -> None:
        """Drop those who stopped waiting, and those who will before they are answered."""
        for request in [one for one in self._waiting if one.encoded.done()]:
            self._drop(request)
        for entry in self.queue.expired(now_s(), self._service_s):
            request = entry.item.request
            if request.job.ends_s > entry.ends_s:  # by now somebody waits for it for longer
                self._wait(replace(entry, ends_s=request.job.ends_s))
                continue
            if not entry.item.place:
                took_s = now_s() - entry.arrived_s
                self.admission.waited(request.ahead_s, took_s, now_s(), in_vain=True)
            message = "it waited too long to be answered in time"
            self._end(request, Refusal("too-late", message, retry_s=self.backlog_s))

    async def _serve(self, entries: Sequence[Entry]) -> None:
        """Have a batch encoded; the next item of each request waits meanwhile."""
        begun_s, items = now_s(), [entry.item for entry in entries]
        for entry, item in zip(entries, items, strict=True):
            request = item.request
            request.queued_s += begun_s - max(entry.arrived_s, request.free_s)
            if not item.place:
                self.admission.waited(request.ahead_s, request.queued_s, begun_s)
            del self._waiting[request]
            if item.rest:  # there is room: its place in the queue is free now
                self._wait(self._entry(request, item.place + 1))
        if not items[0].prepared:
            self._hand_out(items[0])
            return
        done = await self._encoded(items)
        took_s = (now_s() - begun_s) / len(entries)
        for entry in entries:
            self.queue.charge(entry, self._scarce_s(entry.item, took_s))
        if done:
            self.sizes.took(entries[0].kind, len(items), done[0].run.latency_s)
        else:
            self.sizes.failed(entries[0].kind, len(items))
        for item, one in zip(items, done, strict=False):  # none if it failed
            self._learn(item.prepared, one, took_s, len(items))
            self._hand_out(item, one)

    async def _encoded(self, items: list[QueuedItem]) -> list[EncodedJob]:
        """A batch, encoded in the device's thread; nothing if it failed, and who waits is told."""
        self._running = items
        self._show()
        works = []
        for item in items:
            request, prepared = item.request, item.prepared
            assert prepared is not None
            name = f"{request.task}/{item.place}"
            works.append(EncodingJob(name, request.user.name, prepared, request.job.ends_s))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._device, self.loop.encode, works)
        except Exception as error:
            for item in items:
                self._end(item.request, error)
            return []
        finally:
            self._running = []

    def _hand_out(self, item: QueuedItem, done: EncodedJob | None = None) -> None:
        """An item is done; with the last, the request goes on to its answer."""
        request = item.request
        request.free_s = now_s()
        if done:
            request.done.append(done)
        if not item.rest and not request.encoded.done():
            self.answering.enter(request)
            request.encoded.set_result(request.done)

    def _learn(self, prepared: Prepared, done: EncodedJob, took_s: float, batch: int) -> None:
        """How long an item keeps the device busy, which is more than its measured latency.

        For the first of a modality the encoder was loaded, which says nothing of the next.
        """
        if prepared.modality not in self._measured:
            self._measured.add(prepared.modality)
            took_s = min(took_s, done.run.latency_s)
        energy_j = done.run.energy_j or math.nan  # 0: the meter was gone
        self.admission.encoded(prepared.modality, took_s, energy_j, prepared.kind, batch)

    def _show(self) -> None:
        running = self.running + self.answering.running
        self.metrics.queue(len(self.queue), running, self.backlog_s)

    def close(self) -> None:
        """Let the call under way end; what waits for the journal waits no longer."""
        self.loop.closing.set()
        self._device.shutdown(wait=True, cancel_futures=True)
