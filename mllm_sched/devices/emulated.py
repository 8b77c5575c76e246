"""A simulated or replayed device in real time, whose features are real."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence

from mllm_sched.arms import Arm
from mllm_sched.devices.base import Encoded, KnownDevice, trusted_arms
from mllm_sched.devices.live import check_task, failed_run
from mllm_sched.devices.model_encoders import FLOAT32, ModelEncoders, Prepared
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.subprocess_worker import CrashError, HangError
from mllm_sched.tasks import Task


class EmulatedDevice:
    """Tasks take as long, and are charged as much, as a simulated or replayed device says.

    ``run`` returns once the emulated latency has passed. The features are made meanwhile, by this
    machine's processor in float32 on one thread. If that takes longer, ``behind_s`` of the result
    says by how much; it never counts as latency. An emulated latency above the ``timeout_s`` of
    the encoders hangs as a real one would: after that time.

    ``encoders`` says the device's encoder for each modality, by default its first; ``speed`` how
    many times as fast as on the device time passes here. Raises ValueError if the device has no
    such encoder, or none for a modality of the model.
    """

    def __init__(
        self,
        device: KnownDevice,
        model: ModelEncoders,
        *,
        encoders: Mapping[str, str] | None = None,
        speed: float = 1.0,
    ) -> None:
        if not 0 < speed < math.inf:
            raise ValueError(f"speed={speed}: expected above 0; 1 is as fast as the board")
        self.device, self.encoders, self.speed = device, model, speed
        self.name, self.space = device.name, device.space
        self.batches = not isinstance(device, TraceDevice)  # a table does not say what they take
        self.default_arms = trusted_arms(device)
        self.evidence, self.energy_evidence = device.evidence, device.energy_evidence
        self.meter_source = f"as {device.name} says"
        self.modalities = _chosen(device, model.half.modalities, encoders or {})
        self._closed = threading.Event()

    def run(self, arm: Arm, task: Task, items: Sequence[Prepared] = ()) -> Encoded:
        """Encode the items while the emulated time passes; see ``LiveDevice.run``."""
        check_task(self, task, items, self.batches)
        try:
            self.encoders.open(FLOAT32, items, warm_up=False)
            begun_s = time.perf_counter()
            said = self.device.run(arm, task)
            timeout_s = self.encoders.timeout_s
            if said.failed or said.latency_s > timeout_s:
                took_s = min(said.latency_s, timeout_s) if said.latency_s > 0 else 0.0
                self._pass(begun_s, took_s)
                raise HarnessError(said.failed) if said.failed else HangError(took_s)
            self.encoders.run()
            parts = self.encoders.features(items)
            behind_s = self._pass(begun_s, said.latency_s)
        except HarnessError as error:
            return failed_run(self, arm, task, error)
        return Encoded(
            arm,
            task,
            said.latency_s,
            said.energy_j,
            self.evidence,
            self.energy_evidence,
            parts=parts,
            behind_s=behind_s,
        )

    def load(self, arms: Sequence[Arm]) -> None:
        """Load the encoders; HarnessError if that fails."""
        self.encoders.load([FLOAT32])

    def state(self) -> Mapping[str, str]:
        """Nothing: there are no clocks."""
        return {}

    def close(self) -> None:
        """End the encoders' process, the device, and a run under way in another thread."""
        self._closed.set()
        self.encoders.close()
        self.device.close()

    def _pass(self, begun_s: float, latency_s: float) -> float:
        """Wait out the device's time; how much it is too late. CrashError if closed meanwhile."""
        left_s = latency_s / self.speed - (time.perf_counter() - begun_s)
        if self._closed.wait(max(0.0, left_s)):
            raise CrashError("the device was closed")
        return max(0.0, -left_s)


def _chosen(
    device: KnownDevice, modalities: Sequence[str], wanted: Mapping[str, str]
) -> dict[str, str]:
    """The device's encoder for each modality, and what it takes."""
    held = ", ".join(f"{name} ({modality})" for name, modality in device.modalities.items())
    for modality, encoder in wanted.items():
        if device.modalities.get(encoder) != modality:
            raise ValueError(f"encoders: {modality}: {encoder!r}: {device.name} has {held}")
    first = {modality: name for name, modality in reversed(device.modalities.items())}
    if lacking := sorted(set(modalities) - set(first)):
        raise ValueError(
            f"{device.name} has no encoder for {', '.join(lacking)}; it has {held}. "
            "Serve fewer modalities, or take another device"
        )
    return {wanted.get(modality, first[modality]): modality for modality in modalities}
