"""What a meter says of one window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


class HarnessError(RuntimeError):
    """What can go wrong with one arm while the next may still be measured."""


class MeterError(HarnessError):
    """A meter that broke in mid-window; the message says which part, and how."""


@dataclass(frozen=True)
class Reading:
    """Energy of one window, with the bounds that the meter can vouch for.

    Attributes
    ----------
    energy_j
        Joules used in the window.
    low_j, high_j
        95 % interval of what sampling or a coarse counter may have missed. A fault of the sensor's
        own scale, the same in every window, is not in it.
    duration_s
        Length of the window.
    rails_j
        Joules of every rail, those that the total leaves out among them.
    samples
        Readings taken within the window; 0 for a counter.
    rate_hz, asked_hz
        Readings per second: reached and asked for; NaN for a counter.
    longest_gap_s
        Longest time without a reading, the window's ends among them.
    unmoved_w
        Counted rails whose every reading was the same, and what it was in watts. A sensor of a
        working rail flickers; one that shows the same idle and loaded is stuck.
    notes
        What a reader should know: a meter slower than asked, a clock that was set, ...
    """

    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    rails_j: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    rate_hz: float = math.nan
    asked_hz: float = math.nan
    longest_gap_s: float = 0.0
    unmoved_w: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def power_w(self) -> float:
        """Mean power over the window; NaN for a window of no length."""
        return self.energy_j / self.duration_s if self.duration_s > 0 else math.nan
