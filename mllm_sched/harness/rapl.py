"""The energy counters of Intel and AMD processors."""

from __future__ import annotations

import time
from pathlib import Path

from mllm_sched.harness.reading import PowerMeter, Reading

ZONES = "sys/class/powercap"

# The counters are refreshed about once a millisecond, and a package may be switched from rest to
# its highest power in between; where the kernel does not say what that is, this is assumed.
REFRESH_S = 0.001
HIGHEST_PACKAGE_W = 500.0


class RaplMeter(PowerMeter):
    """Energy of the processor packages, whatever runs on them.

    One wrap-around of each counter within a window is allowed for; they take minutes to an hour.
    OSError if there are no counters, or they may not be read (most systems let only root do so).
    """

    min_window_s = 1.0  # a thousand times the refresh period

    def __init__(self, root: Path = Path("/")) -> None:
        # Zones with a second colon are parts of a package; "psys" overlaps the packages.
        folder = root / ZONES
        zones = [zone for zone in sorted(folder.glob("*-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [zone for zone in zones if _text(zone / "name").startswith("package")]
        if not self._zones:
            raise FileNotFoundError(f"no RAPL package counters in {folder}")
        self._ranges_uj = [int(_text(zone / "max_energy_range_uj")) for zone in self._zones]
        self._highest_w = sum(_highest_w(zone) for zone in self._zones)
        self._read()  # fails now rather than in the first window
        self.source = f"RAPL counters of {len(self._zones)} processor package(s)"

    def _begin(self) -> tuple[float, list[int]]:
        return time.monotonic(), self._read()

    def _end(self, began: tuple[float, list[int]]) -> Reading:
        began_s, before_uj = began
        used_uj = [
            (after - before) % wrap
            for before, after, wrap in zip(before_uj, self._read(), self._ranges_uj, strict=True)
        ]
        energy_j, unsure_j = sum(used_uj) / 1e6, self._highest_w * REFRESH_S
        return Reading(
            energy_j,
            max(0.0, energy_j - unsure_j),
            energy_j + unsure_j,
            time.monotonic() - began_s,
        )

    def _read(self) -> list[int]:
        return [int(_text(zone / "energy_uj")) for zone in self._zones]


def _highest_w(zone: Path) -> float:
    try:
        return int(_text(zone / "constraint_0_max_power_uw")) / 1e6 or HIGHEST_PACKAGE_W
    except (OSError, ValueError):  # not every kernel and processor shows it
        return HIGHEST_PACKAGE_W


def _text(path: Path) -> str:
    return path.read_text().strip()
