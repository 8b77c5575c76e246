"""Where a task runs on an arm."""

from mllm_sched.devices.base import Device, Expected, KnownDevice
from mllm_sched.devices.disturbances import Background, Drift, Noise, Outage, Throttling
from mllm_sched.devices.registry import device_names, open_device

__all__ = [
    "Background",
    "Device",
    "Drift",
    "Expected",
    "KnownDevice",
    "Noise",
    "Outage",
    "Throttling",
    "device_names",
    "open_device",
]
