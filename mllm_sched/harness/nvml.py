"""Energy of an NVIDIA graphics card, through NVIDIA's management library.

Tested against an imitation of the library; never run on a card by us.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pynvml

from mllm_sched.harness.reading import MeterError, PowerMeter, Reading

REFRESH_S = 0.1  # of the counter where it cannot be seen; cards refresh it every 20 to 100 ms
POLL_S = 0.5  # how long to look for its steps
ABOVE_LIMIT = 1.25  # peaks go beyond the power limit for a moment


class Card:
    """The first graphics card; OSError without a driver or a card."""

    def __init__(self) -> None:
        with _as(OSError, "no NVIDIA graphics card can be read"):
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self.name = _text(pynvml.nvmlDeviceGetName(self._handle))
            self.limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; None on cards without the counter."""
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except pynvml.NVMLError_NotSupported:
            return None

    def power_w(self) -> float:
        """Watts now, or where the card has no field "instant" a mean of the last second."""
        (field,) = pynvml.nvmlDeviceGetFieldValues(self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn == pynvml.NVML_SUCCESS:
            return float(field.value.uiVal) / 1000
        return float(pynvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000


class NvmlCounterMeter(PowerMeter):
    """The energy counter of a whole card, memory included; OSError if it has none."""

    min_window_s = 10.0  # a hundred times the refresh period

    def __init__(self) -> None:
        self._card = Card()
        if self._card.energy_j() is None:
            raise OSError(f"{self._card.name} has no energy counter")
        self._refresh_s = _refresh_s(self._card)
        self.source = f"energy counter of {self._card.name} (NVML)"

    def _begin(self) -> tuple[float, float]:
        return time.monotonic(), self._read()

    def _end(self, began: tuple[float, float]) -> Reading:
        began_s, before_j = began
        energy_j, duration_s = self._read() - before_j, time.monotonic() - began_s
        if energy_j < 0:
            raise MeterError("the card's energy counter went back: its driver was reloaded")
        unsure_j = self._card.limit_w * ABOVE_LIMIT * self._refresh_s
        return Reading(energy_j, max(0.0, energy_j - unsure_j), energy_j + unsure_j, duration_s)

    def _read(self) -> float:
        with _as(MeterError, "the graphics card cannot be read any more"):
            energy_j = self._card.energy_j()
        if energy_j is None:
            raise MeterError("the card's energy counter is gone")
        return energy_j


class NvmlRails:
    """Power of a card without a counter, as ``sampler.Rails``."""

    def __init__(self) -> None:
        self._card = Card()
        self.names: tuple[str, ...] = (self._card.name,)
        self.counted: tuple[str, ...] = self.names
        self.range_w = (0.0, self._card.limit_w * ABOVE_LIMIT)
        self.read()  # fails now rather than in the first window

    def read(self) -> list[float]:
        """Watts now; OSError if the card cannot be read."""
        with _as(OSError, "the graphics card cannot be read any more"):
            return [self._card.power_w()]

    def close(self) -> None:
        """Nothing is kept open."""


def _refresh_s(card: Card) -> float:
    """Time between two steps of the counter, as it is seen; assumed if it shows too few."""
    steps: list[float] = []
    last, ends_s = card.energy_j(), time.monotonic() + POLL_S
    while time.monotonic() < ends_s and len(steps) < 4:
        if (now := card.energy_j()) != last:
            steps.append(time.monotonic())
            last = now
        time.sleep(0.001)
    gaps = [after - before for before, after in pairwise(steps)]
    return max(gaps, default=REFRESH_S)


@contextmanager
def _as(kind: type[Exception], what: str) -> Iterator[None]:
    """The library's errors as another kind, with what failed."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise kind(f"{what}: {error}") from error


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
