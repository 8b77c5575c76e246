"""Energy meters: what the machine used between ``start`` and ``stop``.

A meter says where its joules come from: ``evidence`` is ``measured`` for a counter in hardware
and ``estimated`` for anything else; ``source`` says it in words.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

RAPL_ROOT = Path("/sys/class/powercap")

# Assumed. The rated power of today's servers and desktops, over their cores, is 4 to 10 W; a
# busy core draws most of its share, and an idle one a tenth of it or so.
WATTS_PER_BUSY_CORE = 6.0
WATTS_PER_IDLE_CORE = 0.6


class PowerMeter(Protocol):
    """What every meter can do.

    Attributes
    ----------
    evidence
        ``measured`` or ``estimated``.
    source
        Where the joules come from, in words.
    """

    evidence: str
    source: str

    def start(self) -> None:
        """Begin a window; one that is open already begins anew."""
        ...

    def stop(self) -> float:
        """Joules since ``start``; RuntimeError if the meter was not started."""
        ...


class RaplMeter:
    """The energy counters of Intel and AMD processors, summed over the packages.

    They cover everything that runs on the processor, not this process alone, and are updated
    about once a millisecond: windows below 20 ms are rough. A counter wraps around after minutes
    to an hour; a window longer than that cannot be told from a short one.

    Parameters
    ----------
    root
        Where the kernel shows the counters.

    Raises
    ------
    OSError
        If there are no counters, or they may not be read (most systems let only root do so).
    """

    evidence = "measured"

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        # Zones with a second colon are parts of a package; "psys" overlaps the packages.
        zones = [zone for zone in sorted(root.glob("*-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [zone for zone in zones if _text(zone / "name").startswith("package")]
        if not self._zones:
            raise FileNotFoundError(f"no RAPL package counters in {root}")
        self._ranges_uj = [int(_text(zone / "max_energy_range_uj")) for zone in self._zones]
        self._started_uj: list[int] | None = None
        self._read()  # fails now rather than in the first window
        self.source = f"RAPL counters of {len(self._zones)} processor package(s)"

    def start(self) -> None:
        """Begin a window."""
        self._started_uj = self._read()

    def stop(self) -> float:
        """Joules since ``start``, one wrap-around of each counter allowed for."""
        if self._started_uj is None:
            raise RuntimeError("the meter was not started; call start() first")
        windows = zip(self._started_uj, self._read(), self._ranges_uj, strict=True)
        self._started_uj = None
        used_uj = sum(
            after - before if after >= before else after - before + wrap
            for before, after, wrap in windows
        )
        return used_uj / 1e6

    def _read(self) -> list[int]:
        return [int(_text(zone / "energy_uj")) for zone in self._zones]


class CpuTimeMeter:
    """An estimate from the CPU time of this process and the time that passed.

    Energy = busy core seconds x ``watts_per_core`` + idle core seconds x ``idle_watts_per_core``,
    over the cores this process may use. The watts are assumed, the same whatever the core does;
    so it ranks arms by CPU time, and cannot see the clock, the memory or other programs.

    Parameters
    ----------
    watts_per_core
        Power of a busy core; assumed, see ``WATTS_PER_BUSY_CORE``.
    idle_watts_per_core
        Power of a core that waits; assumed.
    cores
        Cores that this process answers for; by default those it may use.
    reason
        Why nothing better is used.
    """

    evidence = "estimated"

    def __init__(
        self,
        watts_per_core: float = WATTS_PER_BUSY_CORE,
        idle_watts_per_core: float = WATTS_PER_IDLE_CORE,
        cores: int | None = None,
        reason: str = "",
    ) -> None:
        for name, watts in [("busy", watts_per_core), ("idle", idle_watts_per_core)]:
            if not watts > 0:
                raise ValueError(f"watts of a {name} core: {watts}; expected above 0")
        self.watts_per_core = watts_per_core
        self.idle_watts_per_core = idle_watts_per_core
        self.cores = usable_cores() if cores is None else cores
        self.source = (
            f"CPU time x {watts_per_core:g} W a busy core, {idle_watts_per_core:g} W an idle one "
            f"(assumed), {self.cores} core(s)" + (f"; {reason}" if reason else "")
        )
        self._started: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin a window."""
        self._started = time.process_time(), time.perf_counter()

    def stop(self) -> float:
        """Joules since ``start``, estimated."""
        if self._started is None:
            raise RuntimeError("the meter was not started; call start() first")
        busy_s = time.process_time() - self._started[0]
        idle_s = max(0.0, self.cores * (time.perf_counter() - self._started[1]) - busy_s)
        self._started = None
        return busy_s * self.watts_per_core + idle_s * self.idle_watts_per_core


def open_meter(root: Path = RAPL_ROOT) -> PowerMeter:
    """RAPL where it can be read, else the estimate, whose ``source`` says why.

    Examples
    --------
    >>> open_meter(Path("nowhere")).evidence
    'estimated'
    """
    try:
        return RaplMeter(root)
    except (OSError, ValueError) as error:
        return CpuTimeMeter(reason=f"RAPL unavailable: {error}")


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text(path: Path) -> str:
    return path.read_text().strip()
