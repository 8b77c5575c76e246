"""Temperatures, and signs that the machine slowed itself down."""

from __future__ import annotations

import math
import time
from pathlib import Path

ZONES = "sys/class/thermal/thermal_zone*"

# Over-current events of a Jetson, and thermal throttling of x86 cores.
COUNTERS = (
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
)
COOLING = "sys/class/thermal/cooling_device*"  # above state 0 while it holds something back
POLL_S = 1.0


class Thermals:
    """The thermal zones and throttling signs under a root; a machine may have none."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._zones = sorted(root.glob(ZONES))
        self._counters = [file for pattern in COUNTERS for file in sorted(root.glob(pattern))]
        self._cooling = [
            folder / "cur_state"
            for folder in sorted(root.glob(COOLING))
            if "fan" not in _text(folder / "type").lower()
        ]

    def hottest_c(self) -> float:
        """Degrees Celsius of the hottest zone; NaN without any."""
        found = []
        for zone in self._zones:
            try:
                found.append(int(_text(zone / "temp")) / 1000)
            except (OSError, ValueError):  # the kernel refuses to read a zone without power
                continue
        return max(found, default=math.nan)

    def throttle_count(self) -> int:
        """Times that the machine has held itself back since it was started."""
        return sum(int(_text(file) or 0) for file in self._counters)

    def holding_back(self) -> bool:
        """Whether a cooling device other than a fan is slowing the machine down now."""
        return any(int(_text(file) or 0) > 0 for file in self._cooling)

    def throttled_since(self, count: int) -> bool:
        """Whether it has held itself back since the count was taken, or does so now."""
        return self.holding_back() or self.throttle_count() > count

    def cool_down(self, target_c: float, at_most_s: float) -> float:
        """Wait until nothing is hotter than the target; seconds it took, ``at_most_s`` at most."""
        began = time.monotonic()
        while self.hottest_c() > target_c and time.monotonic() - began < at_most_s:
            time.sleep(POLL_S)
        return time.monotonic() - began


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:  # hot-unplugged, or a kernel that shows less
        return ""
