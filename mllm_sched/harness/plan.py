"""How an arm is to be measured; light to import, so that a command line can tell its defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllm_sched.harness.reading import PowerMeter

DISCARDS = 3  # windows with a pause in them that are measured again, before the arm is given up


@dataclass(frozen=True)
class Plan:
    """How an arm is measured.

    Attributes
    ----------
    window_s
        Length of a window; never less than the meter's shortest.
    idle_s
        Length of the idle windows before and after; 0 for none. Half the meter's shortest window
        at least.
    target
        Relative half-width of the 95 % interval that energy and latency should have.
    windows, max_windows
        Those that decide how many are needed, and the most there may be.
    warm_up_s
        Longest warm-up; it ends when three chunks in a row take the same within 5 %.
    cool_down_s
        Longest wait, before an arm, for the machine to be as cool as at the start.
    cool_margin_c
        How much warmer it may still be, degrees.
    """

    window_s: float = 0.0
    idle_s: float = 1.0
    target: float = 0.02
    windows: int = 4
    max_windows: int = 6
    warm_up_s: float = 10.0
    cool_down_s: float = 60.0
    cool_margin_c: float = 5.0

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
