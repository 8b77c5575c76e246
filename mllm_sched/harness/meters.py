"""Opens the energy meter of a machine: sampled rails, a counter in hardware, or an estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.ina3221 import Ina3221Rails
from mllm_sched.harness.rapl import RaplMeter
from mllm_sched.harness.reading import PowerMeter
from mllm_sched.harness.sampler import RATE_HZ, SampledMeter


def open_meter(root: Path = Path("/"), kind: str = "", rate_hz: float = RATE_HZ) -> PowerMeter:
    """The best meter of the machine for work on its processor, or the one that is named.

    In this order: the rails of a Jetson, the counters of the processor (RAPL), an estimate from
    CPU time, whose ``source`` says why nothing better was found. A graphics card's meter sees the
    card alone, so it has to be asked for by name.

    ``root`` is that of the file system, and ``rate_hz`` the readings per second of a meter that is
    sampled. ``kind`` is ``ina3221``, ``rapl``, ``nvml`` or ``estimate``; OSError if that is not
    there.
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


def _open_nvml() -> PowerMeter:
    from mllm_sched.harness.nvml import NvmlMeter  # few machines have a card

    return NvmlMeter()


METERS: Mapping[str, Callable[[Path, float], PowerMeter]] = {
    "ina3221": lambda root, rate_hz: SampledMeter(
        Ina3221Rails(root), "INA3221 sensors of the module", rate_hz
    ),
    "rapl": lambda root, rate_hz: RaplMeter(root),
    "nvml": lambda root, rate_hz: _open_nvml(),
    "estimate": lambda root, rate_hz: CpuTimeMeter(),
}
