"""Power over time with a known integral. No imports of the package: the feeder starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pulses:
    """``top_w`` for the first ``width_s`` of every period, ``base_w`` for the rest.

    Square waves, spikes and loads that are mostly idle differ only in these numbers.
    """

    base_w: float
    top_w: float
    period_s: float = 1.0
    width_s: float = 0.5

    def power_w(self, t_s: Any) -> Any:
        """Watts at a time, in seconds; also of arrays of times."""
        return self.base_w + (self.top_w - self.base_w) * (t_s % self.period_s < self.width_s)

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two times, exactly."""
        high_s = self._high_s(end_s) - self._high_s(start_s)
        return self.base_w * (end_s - start_s) + (self.top_w - self.base_w) * high_s

    def _high_s(self, t_s: float) -> float:
        periods, rest_s = divmod(t_s, self.period_s)
        return periods * self.width_s + min(rest_s, self.width_s)


@dataclass(frozen=True)
class Ramp:
    """From ``low_w`` to ``high_w`` over every period, and back at once."""

    low_w: float
    high_w: float
    period_s: float

    def power_w(self, t_s: Any) -> Any:
        """Watts at a time, in seconds; also of arrays of times."""
        return self.low_w + (self.high_w - self.low_w) * (t_s % self.period_s) / self.period_s

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two times, exactly."""
        return self._until(end_s) - self._until(start_s)

    def _until(self, t_s: float) -> float:
        periods, rest_s = divmod(t_s, self.period_s)
        slope = (self.high_w - self.low_w) / self.period_s
        mean_w = (self.low_w + self.high_w) / 2
        return periods * self.period_s * mean_w + self.low_w * rest_s + slope * rest_s**2 / 2


Waveform = Pulses | Ramp


def constant(watts: float) -> Pulses:
    """The same power always."""
    return Pulses(watts, watts)


def from_facts(facts: dict[str, float]) -> Waveform:
    """A waveform from its fields, as ``dataclasses.asdict`` gives them."""
    return Pulses(**facts) if "base_w" in facts else Ramp(**facts)
