"""Adaptive scheduling of multimodal encoders on edge devices: a reproduction."""

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices import device_names, open_device
from mllm_sched.measurement import Measurement, TableError, read_table, write_table
from mllm_sched.schedulers import make_scheduler, scheduler_names
from mllm_sched.tasks import Task

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
