"""Encoders on a board that is not there: features are real, latency and energy are the board's."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence

from mllm_sched.arms import ORIN_POWER_LEVELS, Arm
from mllm_sched.devices.base import Device
from mllm_sched.devices.orin_model import COMPONENTS
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.devices.trusted import trusted_arms
from mllm_sched.edge.encoder_process import How, Prepared
from mllm_sched.edge.runtime import CALL_TIMEOUT_S, OPEN_TIMEOUT_S, Encoded, Runtime
from mllm_sched.tasks import Task


class EmulatedRuntime(Runtime):
    """Tasks take as long, and are charged as much, as a simulated or replayed device says.

    A call returns once the emulated latency has passed. Its features are made meanwhile, by this
    machine's processor in float32 on one thread. If that takes longer, ``behind_s`` of the result
    says by how much; it never counts as latency. An emulated latency above ``timeout_s`` hangs as
    a real one would: after that time.

    Parameters
    ----------
    device
        What says latency and energy.
    model, seed, modalities, timeout_s, open_timeout_s
        See ``Runtime``; ``timeout_s`` is time of the board.
    encoders
        The device's encoder for each modality; by default its first.
    speed
        How many times as fast as the board time passes here.

    Raises
    ------
    ValueError
        If the device has no such encoder, or none for a modality of the model.
    """

    def __init__(
        self,
        device: Device,
        model: str,
        seed: int,
        modalities: Sequence[str],
        encoders: Mapping[str, str] | None,
        speed: float,
        timeout_s: float,
        open_timeout_s: float,
    ) -> None:
        if not 0 < speed < math.inf:
            raise ValueError(f"speed={speed}: expected above 0; 1 is as fast as the board")
        super().__init__(device.name, model, seed, modalities, timeout_s, open_timeout_s)
        self.device = device
        self.speed = speed
        self.space = device.space
        self.trusted = trusted_arms(device)
        self.evidence, self.energy_evidence = device.evidence, device.energy_evidence
        self.meter = f"as {device.name} says"
        self._encoders = _chosen(device, self.modalities, encoders or {})

    def encoder(self, modality: str) -> str:
        """Name of the device's encoder that stands for the model's."""
        super().encoder(modality)
        return self._encoders[modality]

    def close(self) -> None:
        """End the encoders' process and the device."""
        super().close()
        self.device.close()

    def _encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str) -> Encoded:
        modality = prepared[0].modality
        self.process.bring(prepared, cut, How(), warm_up=False)
        begun_s = time.perf_counter()
        task = Task(modality, self.encoder(modality), size=len(prepared))
        said = self.device.run(arm, task)
        if said.failed or said.latency_s > self.timeout_s:
            took_s = min(said.latency_s, self.timeout_s) if said.latency_s > 0 else 0.0
            self._pass(begun_s, took_s)
            if said.failed:
                return Encoded(failed=said.failed)
            return Encoded(failed="hangs", why="hung", hung_s=took_s)
        self.process.run()
        parts = self.process.features(prepared, cut)
        behind_s = self._pass(begun_s, said.latency_s)
        return Encoded(parts, said.latency_s, said.energy_j / len(prepared), behind_s=behind_s)

    def _pass(self, begun_s: float, latency_s: float) -> float:
        """Wait until that much of the board's time has passed; by how much it is too late."""
        left_s = latency_s / self.speed - (time.perf_counter() - begun_s)
        if left_s > 0:
            self._closing.wait(left_s)
        return max(0.0, -left_s)


class SimulatedRuntime(EmulatedRuntime):
    """Encoders on the simulated Jetson AGX Orin.

    Parameters
    ----------
    device
        ``agx-orin-sim``.
    model, seed, modalities, encoders, speed, timeout_s, open_timeout_s
        See ``EmulatedRuntime``.
    components, power_levels, accounting
        See ``SimulatedOrin``.
    noise_seed
        Of its noise.
    """

    def __init__(
        self,
        device: str,
        model: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        *,
        encoders: Mapping[str, str] | None = None,
        speed: float = 1.0,
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        components: Sequence[str] = COMPONENTS,
        power_levels: Sequence[float] = tuple(ORIN_POWER_LEVELS),
        accounting: str = "total",
        noise_seed: int = 0,
    ) -> None:
        board = SimulatedOrin(
            noise_seed, components=components, power_levels=power_levels, accounting=accounting
        )
        timeouts = timeout_s, open_timeout_s
        super().__init__(board, model, seed, modalities, encoders, speed, *timeouts)


class TraceRuntime(EmulatedRuntime):
    """Encoders on a device that was measured before; a table of it is replayed.

    Items are encoded one by one: the table does not say what several take in one call.

    Parameters
    ----------
    device
        ``trace:`` and the path of a table.
    model, seed, modalities, encoders, speed, timeout_s, open_timeout_s
        See ``EmulatedRuntime``.
    noise_seed
        Of the draws among repeats.
    """

    def __init__(
        self,
        device: str,
        model: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        *,
        encoders: Mapping[str, str] | None = None,
        speed: float = 1.0,
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        noise_seed: int = 0,
    ) -> None:
        table = TraceDevice(device.removeprefix("trace:"), noise_seed)
        timeouts = timeout_s, open_timeout_s
        super().__init__(table, model, seed, modalities, encoders, speed, *timeouts)

    def kind(self, prepared: Prepared) -> Hashable:
        """None: never batched."""
        return None


def _chosen(device: Device, modalities: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The device's encoder for each modality."""
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
    return {modality: wanted.get(modality, first[modality]) for modality in modalities}
