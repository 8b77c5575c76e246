"""What every device can do, what an encoded batch is, and which arms are trusted from the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.measurement import Measurement
from mllm_sched.tasks import Task

if TYPE_CHECKING:
    from mllm_sched.devices.model_encoders import ModelEncoders, Prepared
    from mllm_sched.pipeline.requests import Part


@dataclass(frozen=True)
class Expected:
    """True means of every arm for one task, each of shape (arms,)."""

    latency_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]


@runtime_checkable
class Device(Protocol):
    """Where a task runs on an arm."""

    name: str  # as ``open_device`` knows it
    space: ArmSpace  # the arms it offers
    modalities: dict[str, str]  # the encoders it can run, and what each takes
    evidence: str  # what its latency is: ``measured``, ``simulated``, ...
    energy_evidence: str

    def run(self, arm: Arm, task: Task) -> Measurement:
        """Run the task on the arm and measure it."""

    def close(self) -> None:
        """Release what the device holds. Closing twice does nothing."""


@runtime_checkable
class KnownDevice(Device, Protocol):
    """A device whose true means are known, so that regret can be computed."""

    def expected(self, arm: Arm, task: Task) -> Measurement:
        """The true mean of the arm now, without noise."""

    def expected_all(self, task: Task) -> Expected:
        """The true means of all arms now."""


@dataclass(frozen=True, eq=False, slots=True)
class Encoded(Measurement):
    """Measurement of a task on a device that really encodes."""

    # Features of the items, in their order; none if encoding failed. A run whose energy alone could
    # not be measured has failed as a measurement and has features all the same.
    parts: tuple[Part, ...] = ()
    cause: str = ""  # of a failure: ``raised``, ``memory``, ``crashed``, ``hung`` or ``meter``
    hung_s: float = 0.0  # seconds after which a call that hung was killed
    behind_s: float = 0.0  # by which an emulated device took longer than what it emulates


class ModelDevice(Device, Protocol):
    """A device opened with ``model=...``: it encodes real items of a multimodal model."""

    encoders: ModelEncoders
    meter_source: str  # where the joules come from, in words
    batches: bool  # whether several items can be one call

    def run(self, arm: Arm, task: Task, items: Sequence[Prepared] = ()) -> Encoded:
        """Encode the items, all of one kind, in one call, and measure it."""

    def load(self, arms: Sequence[Arm]) -> None:
        """Load the encoders as these arms need them; HarnessError if that fails."""

    def state(self) -> Mapping[str, str]:
        """Power mode and clocks, where the device has them."""


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
    """Arms that may run before anything is known: the device's default arms, else full power."""
    return getattr(device, "default_arms", None) or full_power_arms(device.space)
