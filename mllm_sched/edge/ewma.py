"""What a quantity is of late: its mean, and how far single measurements are off."""

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

    A single measurement that is far above pulls little; one that is far below begins anew, since
    who is taken for slow is asked no more and cannot show many.

    Parameters
    ----------
    expected
        The mean until something is measured; NaN if nothing is known.

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
        """One more measurement; one that is no number above 0 says nothing."""
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
        """As little as it may well be; 0 before it was measured, so that nothing is ruled out."""
        return max(0.0, self.mean - self.spread) if self.count else 0.0

    @property
    def spread(self) -> float:
        """How far it may well be off its mean."""
        return SPREADS * self.deviation


class RunningByKind(OrderedDict[Hashable, Running]):
    """One for each of the kinds that were seen last."""

    def add(self, kind: Hashable, value: float) -> Running:
        """One more measurement of a kind; what is known of it then."""
        running = self.setdefault(kind, Running())
        running.add(value)
        self.move_to_end(kind)
        if len(self) > KINDS:
            self.popitem(last=False)
        return running

    def mean(self, kind: Hashable, default: float) -> float:
        """Of a kind; the default if nothing is known of it."""
        running = self.get(kind)
        return running.mean if running is not None and running.known else default
