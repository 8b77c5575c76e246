"""One arm, measured: idle, warm-up, windows until the mean is known well enough, idle again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mllm_sched.harness.calls import Calls, pooled_sd_s
from mllm_sched.harness.means import (
    Interval,
    Window,
    energy_of,
    idle_power,
    latency_of,
    marginal_of,
    tasks_of,
    windows_needed,
)
from mllm_sched.harness.meters import PowerMeter
from mllm_sched.harness.plan import DISCARDS, Plan
from mllm_sched.harness.reading import MeterError, Reading
from mllm_sched.harness.sampler import PAUSE_S
from mllm_sched.harness.thermals import Thermals

Work = Callable[[float], Calls]
"""Calls the encoder for some seconds, once at least, and says what the calls took."""

STEADY = 0.05  # relative change between two chunks of warm-up that passes for steady
STEADY_CHUNKS = 3


@dataclass(frozen=True)
class ArmResult:
    """What measuring an arm gave, per task.

    Attributes
    ----------
    latency_s, energy_j, marginal_j
        With their intervals; marginal energy is without what the machine takes idle.
    latency_sd_s
        Scatter of single tasks.
    energy_sd_j
        Scatter of the mean between windows; that of single tasks cannot be seen.
    idle_w
        Idle power: the mean of before and after; NaN if it was not measured.
    windows, tasks
        How many were measured.
    rate_hz, longest_gap_s
        Of the sampling; NaN and 0 for a counter.
    temperature_start_c, temperature_end_c
        Of the hottest zone; NaN without any.
    throttled
        Whether the machine held itself back in any window.
    warm_up_s
        How long that took.
    notes
        What a reader should know.
    """

    latency_s: Interval
    energy_j: Interval
    marginal_j: Interval
    latency_sd_s: float
    energy_sd_j: float
    idle_w: float
    windows: int
    tasks: int
    rate_hz: float
    longest_gap_s: float
    temperature_start_c: float
    temperature_end_c: float
    throttled: bool
    warm_up_s: float
    notes: tuple[str, ...] = field(default=())


def measure(
    work: Work, meter: PowerMeter, thermals: Thermals, plan: Plan, items: int = 1
) -> ArmResult:
    """Measure one arm.

    Parameters
    ----------
    work
        Calls the encoder on the arm.
    meter, thermals
        Of the machine.
    plan
        How.
    items
        Tasks that one call serves.

    Raises
    ------
    MeterError
        If the meter broke, or showed what no working meter shows: a rail that never moves,
        windows with pauses in them again and again, less energy than idle.
    WorkerError
        If the encoder did; ``work`` raises it.
    """
    before = _idle(meter, plan)
    start_c = thermals.hottest_c()
    warm_up_s, steady = warm_up(work, plan.warm_up_s)
    windows, discarded = _windows(work, meter, thermals, plan, items)
    end_c = thermals.hottest_c()
    after = _idle(meter, plan)
    _refuse_stuck(windows, [reading for reading in (before, after) if reading])
    notes = dict.fromkeys(note for window in windows for note in window.reading.notes)
    if discarded:
        notes[f"windows with a pause, measured again: {discarded}"] = None
    if not steady:
        notes[f"not steady after {plan.warm_up_s:g} s of warm-up"] = None
    first = plan.windows
    energy_j, latency_s = energy_of(windows, first), latency_of(windows, first)
    if max(energy_j.relative, latency_s.relative) > plan.target:
        notes[f"target of {plan.target:.1%} missed after {len(windows)} windows"] = None
    rates = [window.reading.rate_hz for window in windows]
    return ArmResult(
        latency_s,
        energy_j,
        marginal_of(windows, first, before, after),
        pooled_sd_s([window.calls for window in windows]),
        float(np.std([window.energy_j for window in windows], ddof=1)),
        idle_power(before, after).mean,
        len(windows),
        tasks_of(windows),
        float(np.mean(rates)),
        max(window.reading.longest_gap_s for window in windows),
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


def _idle(meter: PowerMeter, plan: Plan) -> Reading | None:
    if not plan.idle_s:
        return None
    meter.start()
    time.sleep(plan.idle_for(meter))
    return meter.stop()


def _refuse_stuck(windows: Sequence[Window], idle: Sequence[Reading]) -> None:
    """A rail that showed one value idle and under load alike; a working sensor flickers.

    Nested rails may stand still: they do not count.
    """
    readings = [*(window.reading for window in windows), *idle]
    if not idle or not all(reading.samples for reading in readings):
        return
    for rail, watts in readings[0].unmoved_w.items():
        if all(reading.unmoved_w.get(rail) == watts for reading in readings):
            count = sum(reading.samples for reading in readings)
            raise MeterError(f"rail {rail} is stuck at {watts:.4g} W: {count} readings, all alike")
