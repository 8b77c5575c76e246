"""How many items may share one call of the encoder without it taking longer than its limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import takewhile

from mllm_sched.edge.ewma import KINDS, RunningByKind

LOOKS = 3  # calls of a size before it is judged
REST, LONGEST_REST = 64, 4096  # calls of a kind before a size that was too slow is tried again


class BatchSizes:
    """Sizes of batch that kept the limit when they were tried last.

    Every item of a call waits for all of it. A size whose calls take longer than the limit in the
    mean rests, and so does one that failed. It is tried anew later, when the device may be less
    busy, and rests twice as long each time, up to ``LONGEST_REST``. A single item is always
    encoded; which arm keeps the limit is the scheduler's matter.

    Parameters
    ----------
    sizes
        That the encoder can run, 1 among them.
    limit_s
        On the latency of a call.

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
        known = self._kinds.get(kind)
        return tuple(takewhile(known.is_awake, self.sizes)) if known else self.sizes

    def took(self, kind: Hashable, size: int, latency_s: float) -> None:
        """A call of that size took so long."""
        known = self._of(kind)
        known.calls += 1
        running = known.took.add(size, latency_s)
        if size == 1 or running.count < LOOKS:
            return
        if running.mean > self.limit_s:
            known.rests(size)
        else:
            known.rest.pop(size, None)

    def failed(self, kind: Hashable, size: int) -> None:
        """A call of that size came to nothing."""
        known = self._of(kind)
        known.calls += 1
        if size > 1:
            known.rests(size)

    def _of(self, kind: Hashable) -> _Kind:
        known = self._kinds.setdefault(kind, _Kind())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        return known


class _Kind:
    """What is known of items of one kind."""

    def __init__(self) -> None:
        self.calls = 0
        self.took = RunningByKind()  # latency, by size
        self.rest: dict[int, int] = {}  # of a size: how many calls, the last time
        self._until: dict[int, int] = {}  # and until how many there were

    def is_awake(self, size: int) -> bool:
        """Whether a size may be run."""
        return self.calls >= self._until.get(size, 0)

    def rests(self, size: int) -> None:
        """Not to be run for a while, and then to be judged afresh."""
        self.rest[size] = min(2 * self.rest.get(size, REST // 2), LONGEST_REST)
        self._until[size] = self.calls + self.rest[size]
        self.took.pop(size, None)
