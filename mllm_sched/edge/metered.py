"""The energy of one call, from a meter that may break without anything else breaking."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.meters import MendedMeter, PowerMeter
from mllm_sched.harness.reading import MeterError

Result = TypeVar("Result")
FAULTS = (MeterError, OSError, ValueError)  # of files that are gone, or say no number


def metered(
    meters: MendedMeter, pid: int | None, work: Callable[[], Result]
) -> tuple[Result, float, str]:
    """Do the work; its result, the joules it took, and why these are unknown (NaN) if they are.

    Parameters
    ----------
    meters
        Of the machine; opened anew if it broke before.
    pid
        The process that works, for a meter that looks at one.
    work
        What it raises is raised.
    """
    try:
        meter = meters.usable()
        if isinstance(meter, CpuTimeMeter):
            meter.pid = pid
        meter.start()
    except FAULTS as error:
        meters.note(MeterError(str(error)))
        return work(), math.nan, str(error)
    try:
        result = work()
    finally:  # also if the work failed: some meters keep a thread busy while a window is open
        energy_j, lost = _stopped(meters, meter)
    return result, energy_j, lost


def _stopped(meters: MendedMeter, meter: PowerMeter) -> tuple[float, str]:
    try:
        reading = meter.stop()
    except FAULTS as error:
        meters.note(MeterError(str(error)))
        return math.nan, str(error)
    if reading.rate_hz == 0.0 or not reading.energy_j > 0:  # the rate of a counter is NaN
        return math.nan, f"{reading.duration_s:.3g} s: too short for this meter"
    return reading.energy_j, ""
