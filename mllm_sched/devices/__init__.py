"""Where a task runs on an arm, and how a device is opened by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from mllm_sched.devices.base import Device, Encoded, Expected, KnownDevice
from mllm_sched.devices.disturbances import Background, Drift, Noise, Outage, Throttling
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.devices.trace import TraceDevice

if TYPE_CHECKING:
    from mllm_sched.devices.model_encoders import ModelEncoders

LIVE = ("host", "agx-orin")
OF_ONE_ENCODER = {"encoder", "timeout_s", "window_s"}  # on random input; a model has its own
EMULATION = {"encoders", "speed"}  # of a model's encoders on a simulated or replayed device

__all__ = [
    "Background",
    "Device",
    "Drift",
    "Encoded",
    "Expected",
    "KnownDevice",
    "Noise",
    "Outage",
    "Throttling",
    "device_names",
    "open_device",
    "settings_of",
]


def device_names() -> tuple[str, ...]:
    """What ``open_device`` knows; ``trace:`` is followed by the path of a table."""
    return ("agx-orin-sim", "host", "agx-orin", "trace:PATH.csv")


def open_device(
    name: str, seed: Any = 0, *, model: ModelEncoders | None = None, **settings: Any
) -> Device:
    """A device by name.

    Parameters
    ----------
    name
        ``agx-orin-sim``, ``host``, ``agx-orin``, or ``trace:`` and the path of a table.
    seed
        Of all randomness of the device; a live one has none.
    model
        Encoders of a multimodal model: the device then encodes real items, and a simulated or
        replayed one emulates, see ``EmulatedDevice``. The device closes them.
    **settings
        The device's own; see its class.

    Raises ValueError for an unknown name or setting, and OSError if the device is not there, or a
    trace's file.

    Examples
    --------
    >>> open_device("agx-orin-sim", seed=1).space
    ArmSpace(component(3) x power_w(4) x load(5) = 60 arms)
    """
    opener, known = _opener(name), settings_of(name, model is not None)
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"device {name}: unknown setting {unknown[0]!r}; expected some of "
            f"{', '.join(sorted(known))}"
        )
    if name in LIVE:
        return opener(model=model, **settings)
    emulated = {key: settings.pop(key) for key in EMULATION & settings.keys() if model}
    device = opener(seed=seed, **settings)
    if model is None:
        return device
    from mllm_sched.devices.emulated import EmulatedDevice

    return EmulatedDevice(device, model, **emulated)


def settings_of(name: str, with_model: bool) -> set[str]:
    """The settings of a device beside ``seed`` and ``model``; ValueError for an unknown name."""
    known = set(inspect.signature(_opener(name)).parameters) - {"seed", "model"}
    if not with_model:
        return known
    return known - OF_ONE_ENCODER if name in LIVE else known | EMULATION


def _opener(name: str) -> Callable[..., Any]:
    if name.startswith("trace:"):
        return partial(TraceDevice, name.removeprefix("trace:"))
    if name == "agx-orin-sim":
        return SimulatedOrin
    if name == "host":  # live devices take seconds to import
        from mllm_sched.devices.host import HostDevice

        return HostDevice
    if name == "agx-orin":
        from mllm_sched.devices.jetson import JetsonDevice

        return JetsonDevice
    raise ValueError(f"device {name!r}: expected one of {', '.join(device_names())}")
