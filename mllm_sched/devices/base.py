"""What every device can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.measurement import Measurement
from mllm_sched.tasks import Task


@dataclass(frozen=True)
class Expected:
    """True means of every arm for one task, each of shape (arms,)."""

    latency_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]


@runtime_checkable
class Device(Protocol):
    """Where a task runs on an arm.

    Attributes
    ----------
    name
        As ``open_device`` knows it.
    space
        The arms it offers.
    modalities
        The encoders it can run, and what each takes.
    evidence, energy_evidence
        What its latency and its energy are: ``measured``, ``simulated``, ...
    """

    name: str
    space: ArmSpace
    modalities: dict[str, str]
    evidence: str
    energy_evidence: str

    def run(self, arm: Arm, task: Task) -> Measurement:
        """Run the task on the arm and say what it took."""
        ...

    def close(self) -> None:
        """Give back what the device holds. Closing twice does nothing."""
        ...


@runtime_checkable
class KnownDevice(Device, Protocol):
    """A device whose true means are known, so that regret can be told: simulated or replayed."""

    def expected(self, arm: Arm, task: Task) -> Measurement:
        """The true mean of the arm now, without noise."""
        ...

    def expected_all(self, task: Task) -> Expected:
        """The true means of all arms now."""
        ...
