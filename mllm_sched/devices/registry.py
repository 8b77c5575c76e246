"""Devices by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mllm_sched.devices.base import Device
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.devices.trace import TraceDevice


def _open_host(seed: Any = 0, **settings: Any) -> Device:
    # ONNX Runtime and the encoders take seconds to import; only live devices need them.
    from mllm_sched.devices.host import HostDevice

    return HostDevice(seed=seed, **settings)


def _open_jetson(seed: Any = 0, **settings: Any) -> Device:
    from mllm_sched.devices.jetson import JetsonDevice

    return JetsonDevice(seed=seed, **settings)


DEVICES: dict[str, Callable[..., Device]] = {
    "agx-orin-sim": SimulatedOrin,
    "host": _open_host,
    "agx-orin": _open_jetson,
}


def device_names() -> tuple[str, ...]:
    """What ``open_device`` knows; ``trace:`` is followed by the path of a table."""
    return (*DEVICES, "trace:PATH.csv")


def open_device(name: str, seed: Any = 0, **settings: Any) -> Device:
    """A device by name.

    Parameters
    ----------
    name
        ``agx-orin-sim``, ``host``, ``agx-orin``, or ``trace:`` and the path of a table.
    seed
        Of all randomness of the device.
    **settings
        The device's own; see its class.

    Raises
    ------
    ValueError
        For an unknown name; the known ones are listed.
    OSError
        If the device is not there, or a trace's file.

    Examples
    --------
    >>> open_device("agx-orin-sim", seed=1).space
    ArmSpace(component(3) x power_w(4) x load(5) = 60 arms)
    """
    if name.startswith("trace:"):
        return TraceDevice(name.removeprefix("trace:"), seed, **settings)
    if name not in DEVICES:
        raise ValueError(f"device {name!r}: expected one of {', '.join(device_names())}")
    return DEVICES[name](seed=seed, **settings)
