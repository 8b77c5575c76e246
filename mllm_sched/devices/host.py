"""The machine this runs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.example_encoder import ExampleEncoder
from mllm_sched.devices.live import LiveDevice
from mllm_sched.harness import meters
from mllm_sched.harness.cpu_time import usable_cores
from mllm_sched.harness.meters import PowerMeter
from mllm_sched.harness.subprocess_worker import CALL_TIMEOUT_S
from mllm_sched.harness.thermals import Thermals
from mllm_sched.pipeline.onnx import PRECISIONS

if TYPE_CHECKING:
    from mllm_sched.devices.model_encoders import ModelEncoders


class HostDevice(LiveDevice):
    """Runs encoders on this machine.

    Without a model: one encoder on random input, through ONNX Runtime. Arms are precision x
    threads x batch. On the graphics card they are precision x batch, and energy is the card's
    alone; never run on one by us. The items of a batch wait for the whole call, and each is
    charged its share of the energy.

    With a model: real items, through PyTorch on the processor. Arms are precision x threads; the
    items of a task are one batch. Features in float32 are to the last bit those of
    ``EncoderHalf.encode`` with as many threads, but for a batch.

    Latency is measured. Energy is measured where the processor's counters can be read, and is
    estimated from CPU time elsewhere; ``energy_evidence`` says which. The counters see all that
    runs meanwhile and move about once a millisecond: for encoders below 20 ms a call, give
    ``repeats``.

    Parameters
    ----------
    encoder, timeout_s
        See ``ExampleEncoder``.
    model
        Encoders of a model, in place of ``encoder``.
    component
        ``cpu``, or ``gpu`` for its NVIDIA card; that needs onnxruntime-gpu.
    open_meter
        Opens what measures the energy; by default the best there is for the component.
    repeats
        See ``LiveDevice``.

    Examples
    --------
    >>> from mllm_sched.tasks import Task
    >>> device = HostDevice("tiny-clip")
    >>> arm = device.space.arm(precision="fp32", threads=1, batch=1)
    >>> measurement = device.run(arm, Task("image", "tiny-clip"))
    >>> measurement.evidence, 0 < measurement.latency_s < 1
    ('measured', True)
    >>> device.close()
    """

    name = "host"
    batches = True

    def __init__(
        self,
        encoder: str = "clip-vit-b32",
        *,
        model: ModelEncoders | None = None,
        component: str = "cpu",
        open_meter: Callable[[], PowerMeter] | None = None,
        repeats: int = 1,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        if component not in ("cpu", "gpu"):
            raise ValueError(f"component={component!r}: expected one of cpu, gpu")
        if model and component == "gpu":
            raise ValueError("component='gpu': a model's encoders run on the cpu alone")
        threads = Factor("threads", thread_levels(), log=True)
        if model:
            factors = [Factor("precision", ["float32", "bfloat16", "int8"]), threads]
        elif component == "cpu":
            factors = [Factor("precision", PRECISIONS), threads, _batch(1, 2, 4)]
        else:
            factors = [Factor("precision", ["fp32", "fp16"]), _batch(1, 2, 4, 8, 16)]
        self.component = "torch" if model else component
        kind = "nvml" if component == "gpu" else ""
        super().__init__(
            model or ExampleEncoder(encoder, timeout_s),
            ArmSpace(factors),
            open_meter or partial(meters.open_meter, kind=kind),
            Thermals(),
            repeats,
        )

    @property
    def default_arms(self) -> list[Arm]:
        """All cores, one item at a time, in each precision but bfloat16, which can be slow."""
        first = {"batch": 1, "threads": thread_levels()[-1]}
        rest = {name: first[name] for name in self.space.names if name != "precision"}
        precisions = [p for p in self.space.factor("precision").levels if p != "bfloat16"]
        return [self.space.arm(precision=precision, **rest) for precision in precisions]

    def request(self, arm: Arm) -> dict[str, Any]:
        """The arm itself, on the component."""
        return {"component": self.component, "threads": 1, **arm.levels}


def _batch(*sizes: int) -> Factor:
    return Factor("batch", sizes, log=True)


def thread_levels(cores: int | None = None) -> list[int]:
    """Thread counts worth choosing: powers of two up to the physical cores, and all of them.

    Examples
    --------
    >>> thread_levels(1), thread_levels(6)
    ([1], [1, 2, 4, 6])
    """
    if cores is None:
        cores = min(psutil.cpu_count(logical=False) or 1, usable_cores())
    powers = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    return [*powers, cores]
