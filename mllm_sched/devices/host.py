"""The machine this runs on: an encoder, now, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.live import CALL_TIMEOUT_S, LiveDevice
from mllm_sched.harness import meters
from mllm_sched.harness.cpu_time import usable_cores
from mllm_sched.harness.meters import PowerMeter
from mllm_sched.harness.thermals import Thermals
from mllm_sched.pipeline.onnx import PRECISIONS

BATCHES = (1, 2, 4)
GPU_BATCHES = (1, 2, 4, 8, 16)
GPU_PRECISIONS = ("fp32", "fp16")


class HostDevice(LiveDevice):
    """Runs one encoder on this machine; its arms are precision x threads x batch.

    On its graphics card the arms are precision x batch, and energy is the card's alone. Never run
    on one by us.

    A batch of ``n`` serves ``n`` items that wait together: each waits for the whole call, and is
    charged its share of the energy. A task of more items than the batch takes several calls.

    Latency is measured. Energy is measured where the processor's counters can be read, and is
    estimated from CPU time elsewhere; ``energy_evidence`` says which. The counters move about
    once a millisecond: for encoders below 20 ms a call, give ``repeats``.

    Parameters
    ----------
    encoder
        A name of ``ENCODERS``, or ``hf:PATH_OR_HUB_ID`` for a real checkpoint.
    component
        ``cpu``, or ``gpu`` for its NVIDIA card; that needs onnxruntime-gpu.
    seed
        Taken for the sake of ``open_device``; a live device draws nothing.
    open_meter
        Opens what measures the energy; by default the best there is for the component.
    repeats, window_s, weights_seed, timeout_s
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

    def __init__(
        self,
        encoder: str = "clip-vit-b32",
        seed: Any = 0,
        component: str = "cpu",
        open_meter: Callable[[], PowerMeter] | None = None,
        repeats: int = 1,
        window_s: float = 0.0,
        weights_seed: int = 0,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        if component not in SPACES:
            raise ValueError(f"component={component!r}: expected one of {', '.join(SPACES)}")
        self.component = component
        kind = "nvml" if component == "gpu" else ""
        super().__init__(
            encoder,
            ArmSpace(SPACES[component]()),
            open_meter or partial(meters.open_meter, kind=kind),
            Thermals(),
            repeats,
            window_s,
            weights_seed,
            timeout_s,
        )

    @property
    def default_arms(self) -> list[Arm]:
        """All cores, one item at a time, full precision first: where one would start anyway."""
        top = {"threads": self.space.factor("threads").levels[-1]} if self._on_cpu else {}
        precisions = self.space.factor("precision").levels
        return [self.space.arm(precision=p, batch=1, **top) for p in precisions]

    @property
    def _on_cpu(self) -> bool:
        return self.component == "cpu"

    def request(self, arm: Arm) -> dict[str, Any]:
        """The arm itself, on the component."""
        return {"component": self.component, "threads": 1, **arm.levels}


def _cpu_factors() -> list[Factor]:
    return [
        Factor("precision", PRECISIONS),
        Factor("threads", thread_levels(), log=True),
        Factor("batch", BATCHES, log=True),
    ]


def _gpu_factors() -> list[Factor]:
    return [Factor("precision", GPU_PRECISIONS), Factor("batch", GPU_BATCHES, log=True)]


SPACES: Mapping[str, Callable[[], list[Factor]]] = {"cpu": _cpu_factors, "gpu": _gpu_factors}


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
