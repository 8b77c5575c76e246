"""How many items may share one call of the encoder without it taking longer than its limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from mllm_sched.edge.running import Running

LOOKS = 2  # calls of a size before it is judged
REST = 64  # calls of a modality before a size that was too slow is tried again


class BatchSizes:
    """Sizes of batch that kept the limit when they were tried last.

    Every item of a call waits for all of it. A size whose calls take longer than the limit in the
    mean rests, and is tried anew later: the device may be less busy then. It rests twice as long
    each time. A single item is always encoded; which arm keeps the limit is the scheduler's matter.

    Parameters
    ----------
    sizes
        That the encoder can run, 1 among them.
    limit_s
        On the latency of a call.

    Examples
    --------
    >>> sizes = BatchSizes([1, 2, 4], limit_s=0.3)
    >>> for latency_s in (0.4, 0.5):
    ...     sizes.took("image", 4, latency_s)
    >>> sizes.of("image"), sizes.of("audio")
    ((1, 2), (1, 2, 4))
    """

    def __init__(self, sizes: Sequence[int], limit_s: float) -> None:
        self.sizes, self.limit_s = tuple(sorted(sizes)), limit_s
        self._calls: Counter[str] = Counter()
        self._took: dict[tuple[str, int], Running] = {}
        self._rest: dict[tuple[str, int], int] = {}  # how long, the last time
        self._until: dict[tuple[str, int], int] = {}  # the modality has had so many calls

    def of(self, modality: str) -> tuple[int, ...]:
        """The sizes to choose from now, 1 among them; none beyond one that rests."""
        calls = self._calls[modality]
        awake = takewhile(lambda size: calls >= self._until.get((modality, size), 0), self.sizes)
        return tuple(awake)

    def took(self, modality: str, size: int, latency_s: float) -> None:
        """A call of that size took so long."""
        self._calls[modality] += 1
        key = modality, size
        running = self._took.setdefault(key, Running())
        running.add(latency_s)
        if size == 1 or running.count < LOOKS:
            return
        if running.mean <= self.limit_s:
            self._rest.pop(key, None)
            return
        self._rest[key] = 2 * self._rest[key] if key in self._rest else REST
        self._until[key] = self._calls[modality] + self._rest[key]
        del self._took[key]
