"""The machine this runs on: an encoder, now, through ONNX Runtime on the CPU."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import onnxruntime
import psutil

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.harness.meters import PowerMeter, open_meter, usable_cores
from mllm_sched.measurement import Measurement
from mllm_sched.pipeline.encoders import encoder_spec, example_input
from mllm_sched.pipeline.export import INPUT, PRECISIONS, open_session
from mllm_sched.tasks import Task

BATCHES = (1, 2, 4)


class HostDevice:
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
        Of the input.
    weights_seed
        Of the random weights; each value is one exported file of its own.
    meter
        Measures the energy; ``open_meter()`` by default.
    repeats
        Calls per measurement, of which the mean is taken.

    Raises
    ------
    ValueError
        For an unknown encoder, or ``repeats`` below 1.

    Examples
    --------
    >>> device = HostDevice("tiny-clip")
    >>> arm = device.space.arm(precision="fp32", threads=1, batch=1)
    >>> measurement = device.run(arm, Task("image", "tiny-clip"))
    >>> measurement.evidence, 0 < measurement.latency_s < 1
    ('measured', True)
    >>> device.close()
    """

    name = "host"
    evidence = "measured"
    stationary = False  # other programs come and go

    def __init__(
        self,
        encoder: str = "clip-vit-b32",
        seed: int | np.random.Generator | np.random.SeedSequence = 0,
        meter: PowerMeter | None = None,
        repeats: int = 1,
        weights_seed: int = 0,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats={repeats}: expected at least 1")
        self.spec = encoder_spec(encoder)
        self.modalities = {self.spec.name: self.spec.modality}
        self.meter = meter or open_meter()
        self.energy_evidence = self.meter.evidence
        self.repeats = repeats
        self.weights_seed = weights_seed
        self.space = ArmSpace(
            [
                Factor("precision", PRECISIONS),
                Factor("threads", thread_levels(), log=True),
                Factor("batch", BATCHES, log=True),
            ]
        )
        self._inputs = example_input(encoder, max(BATCHES), np.random.default_rng(seed))
        self._sessions: dict[tuple[Any, Any], onnxruntime.InferenceSession] = {}

    @property
    def default_arms(self) -> list[Arm]:
        """All cores, one item at a time, full precision first: where one would start anyway."""
        threads = self.space.factor("threads").levels[-1]
        return [self.space.arm(precision=p, threads=threads, batch=1) for p in PRECISIONS]

    def run(self, arm: Arm, task: Task) -> Measurement:
        """Run the task on the arm, now.

        The first run of a precision and thread count also opens its session, and may export the
        encoder; neither is part of the measurement.

        Returns
        -------
        The measurement; ``failed`` says why if ONNX Runtime could not run it.

        Raises
        ------
        ValueError
            If the task is for another encoder or modality, or the arm is not of this space.
        """
        self._check(task)
        arm = self.space[self.space.index(arm)]
        batch = int(arm.batch)
        calls = math.ceil(task.size / batch)
        try:
            session = self._session(arm)
            latency_s, energy_j = self._measure(session, batch, calls)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            return self._measurement(arm, task, failed=f"{type(error).__name__}: {error}")
        if not energy_j > 0:
            return self._measurement(
                arm, task, failed="window too short for the energy meter; give more repeats"
            )
        return self._measurement(arm, task, latency_s, energy_j * task.size / (calls * batch))

    def close(self) -> None:
        """Close the sessions. Closing twice does nothing; a later run opens them again."""
        self._sessions.clear()

    def _check(self, task: Task) -> None:
        if (task.encoder, task.modality) != (self.spec.name, self.spec.modality):
            raise ValueError(
                f"task for {task.encoder!r} ({task.modality}): this device runs "
                f"{self.spec.name!r} ({self.spec.modality}); open one with encoder={task.encoder!r}"
            )

    def _session(self, arm: Arm) -> onnxruntime.InferenceSession:
        key = (arm.precision, arm.threads)
        if key not in self._sessions:
            session = open_session(
                self.spec.name, str(arm.precision), int(arm.threads), self.weights_seed
            )
            session.run(None, {INPUT: self._inputs})  # the first call allocates; not measured
            self._sessions[key] = session
        return self._sessions[key]

    def _measure(
        self, session: onnxruntime.InferenceSession, batch: int, calls: int
    ) -> tuple[float, float]:
        """Seconds and joules of all calls of one task."""
        feed = {INPUT: self._inputs[:batch]}
        self.meter.start()
        began = time.perf_counter()
        for _ in range(calls * self.repeats):
            session.run(None, feed)
        elapsed_s = time.perf_counter() - began
        return elapsed_s / self.repeats, self.meter.stop() / self.repeats

    def _measurement(
        self,
        arm: Arm,
        task: Task,
        latency_s: float = math.nan,
        energy_j: float = math.nan,
        failed: str = "",
    ) -> Measurement:
        return Measurement(
            arm, task, latency_s, energy_j, self.evidence, self.energy_evidence, failed
        )


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
