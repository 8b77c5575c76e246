"""A meter that is opened anew after it broke."""

from __future__ import annotations

from collections.abc import Callable

from mllm_sched.harness.meters import PowerMeter
from mllm_sched.harness.reading import MeterError


class MendedMeter:
    """Holds a meter, and another like it once that one broke.

    Parameters
    ----------
    open_meter
        Opens one; called again after a meter broke.

    Attributes
    ----------
    meter
        The one that is open.
    """

    def __init__(self, open_meter: Callable[[], PowerMeter]) -> None:
        self._open = open_meter
        self.meter = open_meter()
        self._broke = False

    def usable(self) -> PowerMeter:
        """The meter, opened anew if it broke.

        Raises
        ------
        MeterError
            If it cannot be opened, or if what can be opened is of other evidence: an estimate
            must not take the place of a measurement unseen.
        """
        if self._broke:
            self.meter.close()
            try:
                opened = self._open()
            except (OSError, ValueError) as error:
                raise MeterError(f"the meter cannot be opened again: {error}") from error
            if opened.evidence != self.meter.evidence:
                opened.close()
                lost, left = self.meter.source, opened.source
                raise MeterError(f"the meter cannot be opened again: {lost}; there is only {left}")
            self.meter, self._broke = opened, False
        return self.meter

    def note(self, error: Exception) -> None:
        """Take note of what went wrong: after a meter's own fault it is opened anew."""
        self._broke = self._broke or isinstance(error, MeterError | OSError)

    def close(self) -> None:
        """Close it. Closing twice does nothing."""
        self.meter.close()
