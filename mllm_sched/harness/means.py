"""Means over windows with their 95 % intervals, and how many windows they need.

To stop as soon as an interval looks narrow would favour the moments in which it is too narrow by
chance. So the first windows decide how many there will be, and their scatter alone makes the
interval: Stein's two-stage rule ("A two-sample test for a linear hypothesis whose power is
independent of the variance", Annals of Mathematical Statistics 16, 1945), which covers exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mllm_sched.harness.calls import Calls
from mllm_sched.harness.reading import Reading

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % interval."""

    mean: float
    half: float

    @property
    def relative(self) -> float:
        """Half-width over the mean."""
        return self.half / abs(self.mean) if self.mean else math.inf


@dataclass(frozen=True)
class Window:
    """One window: the meter's reading, what each call took, and the tasks that a call serves."""

    reading: Reading
    calls: Calls
    items: int = 1
    throttled: bool = False

    @property
    def tasks(self) -> int:
        """How many were served."""
        return self.calls.count * self.items

    @property
    def energy_j(self) -> float:
        """Joules per task."""
        return self.reading.energy_j / self.tasks

    @property
    def latency_s(self) -> float:
        """Mean seconds per task; each waits for its whole call."""
        return self.calls.mean_s

    @property
    def pause_s(self) -> float:
        """Longest time in which something stood still that should not have.

        The meter, if it is sampled; the encoder in the middle of a call; or this process between
        the last call and the end of the window.
        """
        reading, calls = self.reading, self.calls
        gap_s = reading.longest_gap_s - 10 / reading.rate_hz if reading.samples else 0.0
        stalled_s = calls.longest_s - 3 * calls.median_s
        return max(gap_s, stalled_s, reading.duration_s - calls.total_s)


def energy_of(windows: Sequence[Window], first: int) -> Interval:
    """Joules per task: how windows differ, and what the meter may have missed within them.

    The first windows decided how many there are; their scatter counts.
    """
    spread = _stein([window.energy_j for window in windows], first)
    return Interval(spread.mean, math.hypot(spread.half, _unsure_j(windows) / tasks_of(windows)))


def latency_of(windows: Sequence[Window], first: int) -> Interval:
    """Seconds per task."""
    return _stein([window.latency_s for window in windows], first)


def windows_needed(windows: Sequence[Window], target: float) -> int:
    """How many windows like these first ones bring both means within the target."""
    first = len(windows)
    widest = max(
        energy_of(windows, first).relative / target, latency_of(windows, first).relative / target
    )
    return math.ceil(first * widest**2)


def marginal_of(
    windows: Sequence[Window], first: int, before: Reading | None, after: Reading | None
) -> Interval:
    """Joules per task beyond what the machine takes idle in the same time."""
    energy_j, idle_w = energy_of(windows, first), idle_power(before, after)
    per_task_s = sum(window.reading.duration_s for window in windows) / tasks_of(windows)
    half = math.hypot(energy_j.half, idle_w.half * per_task_s)
    return Interval(energy_j.mean - idle_w.mean * per_task_s, half)


def _stein(values: Sequence[float], first: int) -> Interval:
    """Mean of all values; its half-width by the scatter of those that decided on their number."""
    scatter = float(np.std(values[:first], ddof=1))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, first - 1))
    return Interval(float(np.mean(values)), quantile * scatter / math.sqrt(len(values)))


def _unsure_j(windows: Sequence[Window]) -> float:
    """What the meter may have missed in all windows; their errors are independent."""
    halves = [(window.reading.high_j - window.reading.low_j) / 2 for window in windows]
    return math.hypot(*halves)


def idle_power(before: Reading | None, after: Reading | None) -> Interval:
    """Watts of the machine at rest, from one or two windows; NaN without any."""
    readings = [reading for reading in (before, after) if reading]
    if not readings:
        return Interval(math.nan, math.nan)
    powers = [reading.power_w for reading in readings]
    unsure = [(reading.high_j - reading.low_j) / 2 / reading.duration_s for reading in readings]
    drift = (max(powers) - min(powers)) / 2
    return Interval(float(np.mean(powers)), math.hypot(drift, math.hypot(*unsure) / len(readings)))


def tasks_of(windows: Sequence[Window]) -> int:
    """How many tasks all windows served."""
    return sum(window.tasks for window in windows)
