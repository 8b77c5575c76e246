"""Seconds of service, which go on over restarts and never step back."""

from __future__ import annotations

from collections.abc import Callable


class ServiceClock:
    """A clock that goes on where the last process left it.

    Parameters
    ----------
    last_s
        What it showed when that was last written down.
    gap_s
        What the wall clock says has passed since; it counts if it is above 0.
    monotonic
        Seconds that pass evenly.

    Attributes
    ----------
    stepped_back_s
        How far the wall clock was set back meanwhile, else 0.

    Examples
    --------
    >>> ServiceClock(100.0, 20.0, monotonic=lambda: 5.0).now_s()
    120.0
    >>> ServiceClock(100.0, -20.0, monotonic=lambda: 5.0).now_s()
    100.0
    """

    def __init__(self, last_s: float, gap_s: float, monotonic: Callable[[], float]) -> None:
        self.stepped_back_s = max(-gap_s, 0.0)
        self._monotonic = monotonic
        self._began = monotonic()
        self._shown = last_s + max(gap_s, 0.0)
        self._base = self._shown

    def now_s(self) -> float:
        """Seconds; never less than at an earlier call."""
        self._shown = max(self._shown, self._base + self._monotonic() - self._began)
        return self._shown
