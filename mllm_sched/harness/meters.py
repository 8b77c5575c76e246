"""Opens the energy meter of a machine: sampled rails, a counter in hardware, or an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.ina3221 import Ina3221Rails
from mllm_sched.harness.rapl import RaplMeter
from mllm_sched.harness.reading import MeterError, PowerMeter, Reading
from mllm_sched.harness.sampler import Rails, Sampler, integrate

RATE_HZ = 100.0
READINGS = 1000  # in a window at least: what a steady load needs to be known to a few percent
SET_BY_S = 0.1  # of the system's clock within a window: more than a time server corrects


class SampledMeter(PowerMeter):
    """Power of rails, sampled at random times and integrated.

    Parameters
    ----------
    rails
        What is read.
    source
        Where the joules come from, in words; the rails that are counted are added.
    rate_hz
        Readings per second that are asked for.
    rng
        Draws the times.

    Attributes
    ----------
    cpu_share
        Of one core, that sampling took in the last window.
    """

    def __init__(
        self,
        rails: Rails,
        source: str,
        rate_hz: float = RATE_HZ,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.rails = rails
        self.rate_hz = rate_hz
        self.source = f"{source}, {' + '.join(rails.counted)}"
        self.min_window_s = READINGS / rate_hz
        self.cpu_share = 0.0
        self._sampler = Sampler(rails, rate_hz, rng or np.random.default_rng())

    def _begin(self) -> tuple[float, float]:
        began = time.monotonic(), time.time()
        self._sampler.start()
        return began

    def _end(self, began: tuple[float, float]) -> Reading:
        began_s, date_s = began
        ended_s, set_by_s = time.monotonic(), time.time() - date_s
        samples = self._sampler.stop()
        self.cpu_share = self._sampler.cpu_s / (ended_s - began_s)
        reading = integrate(samples, began_s, ended_s, self.rails, self.rate_hz)
        set_by_s -= reading.duration_s
        if abs(set_by_s) < SET_BY_S:
            return reading
        note = f"the system's clock was set by {set_by_s:+.1f} s; no duration here depends on it"
        return replace(reading, notes=(*reading.notes, note))

    def close(self) -> None:
        """Stop sampling and close the rails."""
        if self._began is not None:
            self._sampler.stop()
            self._began = None
        self.rails.close()


def open_meter(root: Path = Path("/"), kind: str = "", rate_hz: float = RATE_HZ) -> PowerMeter:
    """The best meter of the machine for work on its processor, or the one that is named.

    In this order: the rails of a Jetson, the counters of the processor (RAPL), an estimate from
    CPU time, whose ``source`` says why nothing better was found. A graphics card's meter sees the
    card alone, so it has to be asked for by name.

    Parameters
    ----------
    root
        Of the file system.
    kind
        ``ina3221``, ``rapl``, ``nvml`` or ``estimate``; the best by default.
    rate_hz
        Readings per second of a meter that is sampled.

    Raises
    ------
    ValueError
        For an unknown kind; the known ones are listed.
    OSError
        If the meter asked for is not there.

    Examples
    --------
    >>> open_meter(Path("nowhere")).evidence
    'estimated'
    """
    if kind:
        if kind not in METERS:
            raise ValueError(f"meter {kind!r}: expected one of {', '.join(METERS)}")
        return METERS[kind](root, rate_hz)
    reasons = []
    for name in ("ina3221", "rapl"):
        try:
            return METERS[name](root, rate_hz)
        except (OSError, ValueError) as error:
            reasons.append(f"{name}: {error}")
    return CpuTimeMeter(reason="; ".join(reasons))


def _open_ina3221(root: Path, rate_hz: float) -> PowerMeter:
    return SampledMeter(Ina3221Rails(root), "INA3221 sensors of the module", rate_hz)


def _open_nvml(root: Path, rate_hz: float) -> PowerMeter:
    from mllm_sched.harness import nvml  # few machines have a card

    if nvml.Card().energy_j() is not None:
        return nvml.NvmlCounterMeter()
    return SampledMeter(nvml.NvmlRails(), "power of the graphics card (NVML)", rate_hz)


METERS: Mapping[str, Callable[[Path, float], PowerMeter]] = {
    "ina3221": _open_ina3221,
    "rapl": lambda root, rate_hz: RaplMeter(root),
    "nvml": _open_nvml,
    "estimate": lambda root, rate_hz: CpuTimeMeter(),
}


class MendedMeter:
    """A meter that is opened anew once it broke; ``meter`` is the one that is open."""

    def __init__(self, open_meter: Callable[[], PowerMeter]) -> None:
        self._open = open_meter
        self.meter = open_meter()
        self._broke = False

    def usable(self) -> PowerMeter:
        """The meter, opened anew if it broke.

        Raises
        ------
        MeterError
            If it cannot be opened, or if what can be opened is of other evidence: an estimate
            must not take the place of a measurement unseen.
        """
        if self._broke:
            self.meter.close()
            try:
                opened = self._open()
            except (OSError, ValueError) as error:
                raise MeterError(f"the meter cannot be opened again: {error}") from error
            if opened.evidence != self.meter.evidence:
                opened.close()
                lost, left = self.meter.source, opened.source
                raise MeterError(f"the meter cannot be opened again: {lost}; there is only {left}")
            self.meter, self._broke = opened, False
        return self.meter

    def note(self, error: Exception) -> None:
        """Take note of what went wrong: after a meter's own fault it is opened anew."""
        self._broke = self._broke or isinstance(error, MeterError | OSError)

    def close(self) -> None:
        """Close it. Closing twice does nothing."""
        self.meter.close()
