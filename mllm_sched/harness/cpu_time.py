"""An estimate of energy for machines that cannot measure it."""

from __future__ import annotations

import ctypes
import os
import time

from mllm_sched.harness.reading import MeterError, PowerMeter, Reading

# Assumed. The rated power of today's servers and desktops, over their cores, is 4 to 10 W; a
# busy core draws most of its share, and an idle one a tenth of it or so.
WATTS_PER_BUSY_CORE = 6.0
WATTS_PER_IDLE_CORE = 0.6


class CpuTimeMeter(PowerMeter):
    """An estimate from the CPU time of one process and the time that passed.

    Energy = busy core seconds x ``WATTS_PER_BUSY_CORE`` + idle core seconds x
    ``WATTS_PER_IDLE_CORE``, over the cores this process may use. The watts are assumed, whatever a
    core does: arms are ranked by CPU time, and clocks, memory and other programs are not seen. The
    readings have no bounds. ``reason`` says why nothing better is used.
    """

    evidence = "estimated"
    min_window_s = 1.0  # so that single switches between processes do not count

    def __init__(self, reason: str = "") -> None:
        self.cores = usable_cores()
        self.pid: int | None = None  # process whose time is counted; None for this one
        self.source = (
            f"CPU time x {WATTS_PER_BUSY_CORE:g} W a busy core, {WATTS_PER_IDLE_CORE:g} W an idle "
            f"one (assumed), {self.cores} core(s)" + (f"; {reason}" if reason else "")
        )

    def _begin(self) -> tuple[float, float]:
        return self._busy_s(), time.perf_counter()

    def _end(self, began: tuple[float, float]) -> Reading:
        busy_s = self._busy_s() - began[0]
        duration_s = time.perf_counter() - began[1]
        idle_s = max(0.0, self.cores * duration_s - busy_s)
        energy_j = busy_s * WATTS_PER_BUSY_CORE + idle_s * WATTS_PER_IDLE_CORE
        return Reading(energy_j, energy_j, energy_j, duration_s)

    def _busy_s(self) -> float:
        if self.pid is None:
            return time.process_time()
        try:
            return time.clock_gettime(_cpu_clock(self.pid))
        except OSError as error:
            raise MeterError(f"process {self.pid} is gone, and its CPU time with it") from error


def _cpu_clock(pid: int) -> int:
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return clock.value


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
