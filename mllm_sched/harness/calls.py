"""What the calls of an encoder in one window took, summed up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Calls:
    """Latencies of some calls; a window of a fast encoder holds hundreds of thousands.

    Attributes
    ----------
    count
        How many.
    mean_s, sd_s, median_s, longest_s
        Of their latencies; the scatter of a single call is 0.
    """

    count: int
    mean_s: float
    sd_s: float
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> Calls:
        """Sum up latencies, at least one.

        Examples
        --------
        >>> Calls.of([0.1, 0.1, 0.4]).median_s
        0.1
        """
        return cls(
            len(latencies_s),
            statistics.fmean(latencies_s),
            statistics.stdev(latencies_s) if len(latencies_s) > 1 else 0.0,
            statistics.median(latencies_s),
            max(latencies_s),
        )

    @property
    def total_s(self) -> float:
        """Time spent in all calls."""
        return self.count * self.mean_s


def pooled_sd_s(parts: Sequence[Calls]) -> float:
    """Scatter of single calls over several windows, whose means may differ."""
    count = sum(part.count for part in parts)
    if count < 2:
        return 0.0
    mean_s = sum(part.total_s for part in parts) / count
    squares = sum(
        (part.count - 1) * part.sd_s**2 + part.count * (part.mean_s - mean_s) ** 2 for part in parts
    )
    return math.sqrt(squares / (count - 1))
