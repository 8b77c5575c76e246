"""What keeps a real board from repeating itself: each a switch of the simulated one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """Log-normal scatter of one task, of mean 1: sds of log latency and log power.

    Energy is power times time, so it takes the scatter of both.
    """

    latency_sd: float
    power_sd: float

    def __post_init__(self) -> None:
        for name in ("latency_sd", "power_sd"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")

    def draw(self, rng: np.random.Generator) -> tuple[float, float]:
        """Factors on latency and on energy."""
        first, second = rng.standard_normal(2).tolist()
        latency = math.exp(self.latency_sd * first - self.latency_sd**2 / 2)
        power = math.exp(self.power_sd * second - self.power_sd**2 / 2)
        return latency, latency * power


@dataclass(frozen=True)
class Throttling:
    """Heat slows the board: a first-order thermal model with a soft limit. All values assumed.

    The junction approaches ``ambient_c + kelvin_per_w x power`` with time constant ``tau_s``;
    above ``limit_c`` every kelvin adds ``slowdown_per_k`` to the latency. Before the task ``start``
    it stays at ``ambient_c``: all heat is led away.
    """

    ambient_c: float = 25.0
    kelvin_per_w: float = 2.0
    tau_s: float = 60.0
    limit_c: float = 85.0
    slowdown_per_k: float = 0.05
    start: int = 0

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start={self.start}: expected a task, 0 or more")

    def warmed(self, temperature_c: float, power_w: float, seconds: float) -> float:
        """Temperature after some seconds at a power."""
        settled = self.ambient_c + self.kelvin_per_w * power_w
        return settled + (temperature_c - settled) * math.exp(-seconds / self.tau_s)

    def slowdown(self, temperature_c: float) -> float:
        """Factor on the latency, at least 1."""
        return 1.0 + self.slowdown_per_k * max(0.0, temperature_c - self.limit_c)


@dataclass(frozen=True)
class Drift:
    """One component's latency and energy end at ``factor`` times what they were.

    It begins at task ``start`` and takes ``over`` tasks.
    """

    component: str
    factor: float
    start: int
    over: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor}: expected above 0")
        if self.start < 0 or self.over < 0:
            raise ValueError(f"start={self.start}, over={self.over}: expected tasks, 0 or more")

    def at(self, step: int) -> float:
        """Factor at a task."""
        if step < self.start:
            return 1.0
        done = 1.0 if self.over == 0 else min(1.0, (step - self.start) / self.over)
        return self.factor**done


@dataclass(frozen=True)
class Background:
    """Other work takes a share of every component, from task ``start`` until before ``stop``.

    The other reading of the paper's "load". It adds to the background load of the task itself.
    """

    share: float
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}: expected within [0, 1)")
        _check_interval(self.start, self.stop)

    def at(self, step: int) -> float:
        """Share taken at a task."""
        return self.share if self.start <= step < self.stop else 0.0


@dataclass(frozen=True)
class Outage:
    """Every run on one component fails, from task ``start`` until before ``stop``.

    Where it is ``announced``, ``SimulatedOrin.available`` leaves the component out.
    """

    component: str
    start: int
    stop: int
    announced: bool = False

    def __post_init__(self) -> None:
        _check_interval(self.start, self.stop)

    def at(self, step: int) -> bool:
        """Whether the component is out at a task."""
        return self.start <= step < self.stop


def _check_interval(start: int, stop: int) -> None:
    if not 0 <= start <= stop:
        raise ValueError(f"start={start}, stop={stop}: expected 0 <= start <= stop")
