"""Energy of an NVIDIA graphics card, through NVIDIA's management library.

Tested against an imitation of the library; never run on a card by us.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from mllm_sched.harness.reading import MeterError, PowerMeter, Reading

REFRESH_S = 0.1  # of the counter, at most: cards refresh it every 20 to 100 ms
ABOVE_LIMIT = 1.25  # peaks go beyond the power limit for a moment


class NvmlMeter(PowerMeter):
    """The energy counter of the first card, memory included.

    OSError without a driver, a card or the counter, which cards since Volta (2017) have.
    """

    min_window_s = 10.0  # a hundred times the refresh period

    def __init__(self) -> None:
        with _as(OSError, "no NVIDIA graphics card can be read"):
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self._limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            self.source = f"energy counter of {pynvml.nvmlDeviceGetName(self._handle)} (NVML)"

    def _begin(self) -> tuple[float, float]:
        return time.monotonic(), self._read_j()

    def _end(self, began: tuple[float, float]) -> Reading:
        began_s, before_j = began
        energy_j, duration_s = self._read_j() - before_j, time.monotonic() - began_s
        if energy_j < 0:
            raise MeterError("the card's energy counter went back: its driver was reloaded")
        unsure_j = self._limit_w * ABOVE_LIMIT * REFRESH_S
        return Reading(energy_j, max(0.0, energy_j - unsure_j), energy_j + unsure_j, duration_s)

    def _read_j(self) -> float:
        """Joules since the driver was loaded."""
        with _as(MeterError, "the graphics card cannot be read any more"):
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000


@contextmanager
def _as(kind: type[Exception], what: str) -> Iterator[None]:
    """The library's errors as another kind, with what failed."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise kind(f"{what}: {error}") from error
