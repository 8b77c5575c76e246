"""Exponentially weighted mean and deviation of a quantity."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

KINDS = 256  # that have a mean of their own, those seen last
MEMORY = 16  # measurements that a mean reaches back over
LEAP = 4.0  # one measurement counts for no more than that many times the mean
SPREADS = 2.0  # mean deviations to either side that are still to be expected


class Running:
    """Exponentially weighted mean and mean deviation, as of round trips in RFC 6298.

    A single measurement far above the mean counts for ``LEAP`` times the mean; one far below
    starts the mean anew, since what is taken for slow is not used and cannot show many. The mean
    is ``expected`` until something is measured, NaN if nothing is known.

    Examples
    --------
    >>> running = Running()
    >>> for seconds in (1.0, 3.0):
    ...     running.add(seconds)
    >>> running.mean, running.deviation
    (2.0, 1.0)
    """

    def __init__(self, expected: float = math.nan) -> None:
        self.mean, self.deviation, self.count = expected, 0.0, 0

    def add(self, value: float) -> None:
        """Add a measurement; one that is no number above 0 is ignored."""
        if not 0 < value < math.inf:
            return
        if not self.count or value * LEAP < self.mean:
            self.mean, self.deviation, self.count = value, 0.0, 1
            return
        self.count = min(self.count + 1, MEMORY)
        off = min(value, LEAP * self.mean) - self.mean
        self.mean += off / self.count
        self.deviation += (abs(off) - self.deviation) / self.count

    @property
    def known(self) -> bool:
        """Whether it was measured or expected."""
        return not math.isnan(self.mean)

    @property
    def least(self) -> float:
        """Lower bound; 0 before it was measured."""
        return max(0.0, self.mean - self.spread) if self.count else 0.0

    @property
    def spread(self) -> float:
        """Half-width of the range to be expected."""
        return SPREADS * self.deviation


class RunningByKind(OrderedDict[Hashable, Running]):
    """One for each of the ``KINDS`` seen last."""

    def add(self, kind: Hashable, value: float) -> Running:
        """Add a measurement of a kind."""
        running = self.setdefault(kind, Running())
        running.add(value)
        self.move_to_end(kind)
        if len(self) > KINDS:
            self.popitem(last=False)
        return running

    def mean(self, kind: Hashable, default: float) -> float:
        """Of a kind, or the default."""
        running = self.get(kind)
        return running.mean if running is not None and running.known else default
