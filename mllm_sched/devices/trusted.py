"""Which arms are trusted before anything is known."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices.base import Device


def full_power_arms(space: ArmSpace, components: Sequence[str] = ("gpu", "dla")) -> list[Arm]:
    """Trusted arms: the last level of every ordered factor, on each of these components.

    A space without components has one such arm. The CPU of an Orin is not trusted: at full power
    it is still an order of magnitude slower than the GPU.
    """
    top = {factor.name: factor.levels[-1] for factor in space.factors if not factor.categorical}
    names = [factor for factor in space.factors if factor.categorical]
    if not names:
        return [space.arm(**top)]
    first = {factor.name: factor.levels[0] for factor in names[1:]}
    chosen = [level for level in names[0].levels if level in components] or [names[0].levels[0]]
    return [space.arm(**{**first, **top, names[0].name: level}) for level in chosen]


def trusted_arms(device: Device) -> list[Arm]:
    """What may run before anything is known: a device's own default arms, else full power."""
    return getattr(device, "default_arms", None) or full_power_arms(device.space)
