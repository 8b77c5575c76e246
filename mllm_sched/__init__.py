"""Adaptive scheduling of multimodal encoders on edge devices: a reproduction."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllm_sched.arms import Arm, ArmSpace, Factor
    from mllm_sched.devices import device_names, open_device
    from mllm_sched.measurement import Measurement, TableError, read_table, write_table
    from mllm_sched.schedulers import make_scheduler, scheduler_names
    from mllm_sched.tasks import Task

_HOMES = {
    "arms": ("Arm", "ArmSpace", "Factor"),
    "devices": ("device_names", "open_device"),
    "measurement": ("Measurement", "TableError", "read_table", "write_table"),
    "schedulers": ("make_scheduler", "scheduler_names"),
    "tasks": ("Task",),
}

__all__ = [
    "Arm",
    "ArmSpace",
    "Factor",
    "Measurement",
    "TableError",
    "Task",
    "device_names",
    "make_scheduler",
    "open_device",
    "read_table",
    "scheduler_names",
    "write_table",
]


def __getattr__(name: str) -> Any:
    """A name when it is first wanted: the process that runs an encoder does without PyTorch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
