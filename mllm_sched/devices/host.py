"""The machine this runs on: an encoder, now, through ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.live import CALL_TIMEOUT_S, LiveDevice
from mllm_sched.harness.cpu_time import usable_cores
from mllm_sched.harness.meters import PowerMeter, open_meter
from mllm_sched.harness.thermals import Thermals
from mllm_sched.pipeline.export import PRECISIONS

BATCHES = (1, 2, 4)


class HostDevice(LiveDevice):
    """Runs one encoder on this machine; its arms are precision x threads x batch.

    A batch of ``n`` serves ``n`` items that wait together: each waits for the whole call, and is
    charged its share of the energy. A task of more items than the batch takes several calls.

    Latency is measured. Energy is measured where the processor's counters can be read, and is
    estimated from CPU time elsewhere; ``energy_evidence`` says which. The counters move about
    once a millisecond: for encoders below 20 ms a call, give ``repeats``.

    Parameters
    ----------
    encoder
        A name of ``ENCODERS``, or ``hf:PATH_OR_HUB_ID`` for a real checkpoint.
    seed
        Taken for the sake of ``open_device``; a live device draws nothing.
    open_meter
        Opens what measures the energy.
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
        open_meter: Callable[[], PowerMeter] = open_meter,
        repeats: int = 1,
        window_s: float = 0.0,
        weights_seed: int = 0,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        space = ArmSpace(
            [
                Factor("precision", PRECISIONS),
                Factor("threads", thread_levels(), log=True),
                Factor("batch", BATCHES, log=True),
            ]
        )
        super().__init__(
            encoder, space, open_meter, Thermals(), repeats, window_s, weights_seed, timeout_s
        )

    @property
    def default_arms(self) -> list[Arm]:
        """All cores, one item at a time, full precision first: where one would start anyway."""
        threads = self.space.factor("threads").levels[-1]
        return [self.space.arm(precision=p, threads=threads, batch=1) for p in PRECISIONS]

    def _request(self, arm: Arm) -> dict[str, Any]:
        return {"component": "cpu", **arm.levels}


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
