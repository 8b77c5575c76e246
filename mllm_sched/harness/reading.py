"""What every energy meter can do, what it says of one window, and how it fails."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class HarnessError(RuntimeError):
    """What can go wrong with one arm while the next may still be measured."""


class MeterError(HarnessError):
    """A meter that broke in mid-window; the message says which part, and how."""


@dataclass(frozen=True)
class Reading:
    """Energy of one window, with the bounds that the meter can vouch for.

    ``low_j`` to ``high_j`` is the 95 % interval of what sampling or a coarse counter may have
    missed. An error of the sensor's scale, the same in every window, is not in it.
    """

    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    samples: int = 0  # taken within the window; 0 for a counter
    rate_hz: float = math.nan  # readings per second; NaN for a counter
    longest_gap_s: float = 0.0  # without a reading, the window's ends included
    # Counted rails whose every reading was the same, and its watts. The sensor of a working rail
    # flickers; one that shows the same idle and loaded is stuck.
    unmoved_w: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a reader should know, as of a meter slower than asked

    @property
    def power_w(self) -> float:
        """Mean power over the window; NaN for a window of no length."""
        return self.energy_j / self.duration_s if self.duration_s > 0 else math.nan


class PowerMeter(ABC):
    """Energy that the machine used between ``start`` and ``stop``."""

    evidence = "measured"  # by a sensor or a counter in hardware, else ``estimated``
    source: str  # where the joules come from, in words
    min_window_s: float  # shortest window that the meter is good for
    _began: Any = None  # what ``_begin`` returned, within a window

    def start(self) -> None:
        """Begin a window; one that is open already begins anew."""
        self._began = self._begin()

    def stop(self) -> Reading:
        """Energy since ``start``.

        Raises RuntimeError if the meter was not started, MeterError if it broke.
        """
        if self._began is None:
            raise RuntimeError("the meter was not started; call start() first")
        began, self._began = self._began, None
        return self._end(began)

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Release what the meter holds. Closing twice does nothing."""

    @abstractmethod
    def _begin(self) -> Any:
        """State at the start of a window."""

    @abstractmethod
    def _end(self, began: Any) -> Reading:
        """Energy since then."""
