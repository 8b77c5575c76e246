"""Measures one arm: idle, warm-up, windows until the mean is known well enough, idle again.

Stopping as soon as an interval looks narrow would bias it. So the first windows decide how many
there will be, and their scatter alone makes the interval: Stein's two-stage procedure (Annals of
Mathematical Statistics 16, 1945), whose coverage is exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mllm_sched.harness.reading import MeterError, PowerMeter, Reading
from mllm_sched.harness.sampler import PAUSE_S
from mllm_sched.harness.subprocess_worker import Calls, pooled_sd_s
from mllm_sched.harness.thermals import Thermals

CONFIDENCE = 0.95
DISCARDS = 3  # windows with a pause in them that are measured again, before the arm is given up


@dataclass(frozen=True)
class Plan:
    """How an arm is measured; ``target`` is what its 95 % intervals should reach.

    A window is never shorter than the meter needs, an idle one never than half of that. Warm-up
    ends when three chunks in a row take the same within 5 %.
    """

    window_s: float = 0.0
    idle_s: float = 1.0  # of the windows before and after; 0 for none
    target: float = 0.02  # relative half-width, of energy and of latency
    windows: int = 4  # that decide how many are needed
    max_windows: int = 6
    warm_up_s: float = 10.0  # at most
    cool_down_s: float = 60.0  # at most, before an arm, to be as cool as at the start
    cool_margin_c: float = 5.0  # how much warmer it may still be

    def __post_init__(self) -> None:
        if not 2 <= self.windows <= self.max_windows:
            raise ValueError(
                f"windows={self.windows}, max_windows={self.max_windows}: expected 2 or more, and "
                "no more than the most; one window cannot tell how it scatters"
            )
        if not self.target > 0:
            raise ValueError(f"target={self.target}: expected a relative half-width above 0")
        for name in ("window_s", "idle_s", "warm_up_s", "cool_down_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected seconds, 0 or more")

    def window_for(self, meter: PowerMeter) -> float:
        """Length of a window with this meter."""
        return max(self.window_s, meter.min_window_s)

    def idle_for(self, meter: PowerMeter) -> float:
        """Length of an idle window with this meter."""
        return max(self.idle_s, meter.min_window_s / 2) if self.idle_s else 0.0

    def seconds(self, meter: PowerMeter) -> tuple[float, float]:
        """Least and most time an arm takes, without opening its encoder."""
        window_s, idle_s = self.window_for(meter), self.idle_for(meter)
        least = 2 * idle_s + self.windows * window_s + min(1.0, self.warm_up_s)
        most = 2 * idle_s + (self.max_windows + DISCARDS) * window_s
        return least, most + self.warm_up_s + self.cool_down_s


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
        """Tasks served."""
        return self.calls.count * self.items

    @property
    def pause_s(self) -> float:
        """Longest stall of the sampling, of a call, or between the last call and the end."""
        reading, calls = self.reading, self.calls
        gap_s = reading.longest_gap_s - 10 / reading.rate_hz if reading.samples else 0.0
        stalled_s = calls.longest_s - 3 * calls.median_s
        return max(gap_s, stalled_s, reading.duration_s - calls.total_s)


def energy_of(windows: Sequence[Window], first: int) -> Interval:
    """Joules per task: scatter of the ``first`` windows, and what the meter may have missed."""
    spread = _stein([window.reading.energy_j / window.tasks for window in windows], first)
    unsure_j = _unsure_j([window.reading for window in windows])
    return Interval(spread.mean, math.hypot(spread.half, unsure_j / _tasks(windows)))


def latency_of(windows: Sequence[Window], first: int) -> Interval:
    """Seconds per task; each waits for its whole call."""
    return _stein([window.calls.mean_s for window in windows], first)


def windows_needed(windows: Sequence[Window], target: float) -> int:
    """How many windows like these first ones bring both means within the target."""
    first = len(windows)
    widest = max(energy_of(windows, first).relative, latency_of(windows, first).relative)
    return math.ceil(first * (widest / target) ** 2)


def idle_power(idle: Sequence[Reading]) -> Interval:
    """Watts of the machine at rest, from windows before and after; NaN without any."""
    if not idle:
        return Interval(math.nan, math.nan)
    powers = [reading.power_w for reading in idle]
    unsure_w = math.hypot(*(_unsure_j([reading]) / reading.duration_s for reading in idle))
    drift_w = (max(powers) - min(powers)) / 2
    return Interval(float(np.mean(powers)), math.hypot(drift_w, unsure_w / len(idle)))


def _stein(values: Sequence[float], first: int) -> Interval:
    """Mean of all values; its half-width by the scatter of those that decided on their number."""
    from scipy.special import stdtrit  # a tenth of a second, and a command line imports ``Plan``

    scatter = float(np.std(values[:first], ddof=1))
    quantile = float(stdtrit(first - 1, (1 + CONFIDENCE) / 2))  # of Student's t
    return Interval(float(np.mean(values)), quantile * scatter / math.sqrt(len(values)))


def _unsure_j(readings: Sequence[Reading]) -> float:
    """What the meter may have missed in all windows; their errors are independent."""
    return math.hypot(*((reading.high_j - reading.low_j) / 2 for reading in readings))


def _tasks(windows: Sequence[Window]) -> int:
    return sum(window.tasks for window in windows)


Work = Callable[[float], Calls]
"""Calls the encoder for some seconds, once at least, and says what the calls took."""

STEADY = 0.05  # relative change between two chunks of warm-up that passes for steady
STEADY_CHUNKS = 3


@dataclass(frozen=True)
class ArmResult:
    """What measuring an arm gave, per task.

    ``marginal_j`` is without what the machine takes idle; temperatures are of the hottest zone.
    NaN: idle power that was not measured, the rate of a counter, temperatures without any zone.
    """

    latency_s: Interval
    energy_j: Interval
    marginal_j: Interval
    latency_sd_s: float  # scatter of single tasks
    energy_sd_j: float  # scatter of means between windows; that of single tasks cannot be seen
    idle_w: float
    windows: int
    tasks: int
    rate_hz: float
    longest_gap_s: float
    temperature_start_c: float
    temperature_end_c: float
    throttled: bool
    warm_up_s: float
    notes: tuple[str, ...] = ()


def measure(
    work: Work, meter: PowerMeter, thermals: Thermals, plan: Plan, items: int = 1
) -> ArmResult:
    """Measure one arm, a call of which serves so many ``items``.

    Raises MeterError if the meter broke, or showed what no working meter shows: a rail that never
    moves, windows with pauses in them again and again, no energy. ``work`` raises WorkerError.
    """
    idle = _idle(meter, plan)
    start_c = thermals.hottest_c()
    warm_up_s, steady = warm_up(work, plan.warm_up_s)
    windows, discarded = _windows(work, meter, thermals, plan, items)
    end_c = thermals.hottest_c()
    idle += _idle(meter, plan)
    readings = [window.reading for window in windows]
    _refuse_stuck(readings, idle)
    notes = dict.fromkeys(note for reading in readings for note in reading.notes)
    if discarded:
        notes[f"windows with a pause, measured again: {discarded}"] = None
    if not steady:
        notes[f"not steady after {plan.warm_up_s:g} s of warm-up"] = None
    energy_j, latency_s = energy_of(windows, plan.windows), latency_of(windows, plan.windows)
    if max(energy_j.relative, latency_s.relative) > plan.target:
        notes[f"target of {plan.target:.1%} missed after {len(windows)} windows"] = None
    idle_w, per_task_s = idle_power(idle), sum(r.duration_s for r in readings) / _tasks(windows)
    marginal_half_j = math.hypot(energy_j.half, idle_w.half * per_task_s)
    return ArmResult(
        latency_s,
        energy_j,
        Interval(energy_j.mean - idle_w.mean * per_task_s, marginal_half_j),
        pooled_sd_s([window.calls for window in windows]),
        float(np.std([window.reading.energy_j / window.tasks for window in windows], ddof=1)),
        idle_w.mean,
        len(windows),
        _tasks(windows),
        float(np.mean([reading.rate_hz for reading in readings])),
        max(reading.longest_gap_s for reading in readings),
        start_c,
        end_c,
        any(window.throttled for window in windows),
        warm_up_s,
        tuple(notes),
    )


def warm_up(work: Work, at_most_s: float) -> tuple[float, bool]:
    """Run until tasks take the same time; seconds spent, and whether they did."""
    began = time.monotonic()
    means: list[float] = []
    while not means or time.monotonic() - began < at_most_s:
        means.append(work(min(1.0, at_most_s) / STEADY_CHUNKS).mean_s)
        last = means[-STEADY_CHUNKS:]
        if len(last) == STEADY_CHUNKS and max(last) - min(last) <= STEADY * min(last):
            return time.monotonic() - began, True
    return time.monotonic() - began, False


def _windows(
    work: Work, meter: PowerMeter, thermals: Thermals, plan: Plan, items: int
) -> tuple[list[Window], int]:
    """As many windows as the first of them ask for; and how many had to be discarded."""
    windows: list[Window] = []
    discarded, wanted = 0, plan.windows
    while len(windows) < wanted:
        window = _window(work, meter, thermals, plan.window_for(meter), items)
        if window.pause_s > PAUSE_S:
            discarded += 1
            if discarded > DISCARDS:
                raise MeterError(
                    f"{discarded} windows had pauses, the last of {window.pause_s:.2g} s: "
                    "a process was suspended or starved"
                )
            continue
        windows.append(window)
        if len(windows) == plan.windows:
            wanted = min(plan.max_windows, windows_needed(windows, plan.target))
    return windows, discarded


def _window(
    work: Work, meter: PowerMeter, thermals: Thermals, seconds: float, items: int
) -> Window:
    throttles = thermals.throttle_count()
    meter.start()
    calls = work(seconds)
    reading = meter.stop()
    if not reading.energy_j > 0:
        raise MeterError(f"a window of {reading.duration_s:.3g} s took {reading.energy_j:g} J")
    return Window(reading, calls, items, thermals.throttled_since(throttles))


def _idle(meter: PowerMeter, plan: Plan) -> list[Reading]:
    if not plan.idle_s:
        return []
    meter.start()
    time.sleep(plan.idle_for(meter))
    return [meter.stop()]


def _refuse_stuck(busy: Sequence[Reading], idle: Sequence[Reading]) -> None:
    """Refuse a counted rail that showed one value, idle and under load; a sensor flickers."""
    readings = [*busy, *idle]
    if not idle or not all(reading.samples for reading in readings):
        return
    for rail, watts in readings[0].unmoved_w.items():
        if all(reading.unmoved_w.get(rail) == watts for reading in readings):
            count = sum(reading.samples for reading in readings)
            raise MeterError(f"rail {rail} is stuck at {watts:.4g} W: {count} readings, all alike")
