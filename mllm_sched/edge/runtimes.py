"""The devices that an agent can encode on: this machine, a Jetson AGX Orin, or an imitated one.

On an imitated board features are real; latency and energy are the board's. The Jetson's was never
run on one by us. The energy of a call comes from a meter that may break without anything else
breaking.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from mllm_sched.arms import ORIN_POWER_LEVELS, Arm, ArmSpace, Factor, Level
from mllm_sched.devices.base import Device
from mllm_sched.devices.host import thread_levels
from mllm_sched.devices.jetson import JetsonDevice
from mllm_sched.devices.orin_model import COMPONENTS
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.devices.trusted import full_power_arms, trusted_arms
from mllm_sched.edge.encoder_process import How, Prepared
from mllm_sched.edge.runtime import CALL_TIMEOUT_S, OPEN_TIMEOUT_S, Encoded, Runtime
from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.meters import RATE_HZ, MendedMeter, PowerMeter, open_meter
from mllm_sched.harness.reading import MeterError
from mllm_sched.harness.subprocess_worker import OPEN_TIMEOUT_S as BUILD_TIMEOUT_S
from mllm_sched.tasks import Task

Result = TypeVar("Result")
FAULTS = (MeterError, OSError, ValueError)  # of files that are gone, or say no number


def metered(
    meters: MendedMeter, pid: int | None, work: Callable[[], Result]
) -> tuple[Result, float, str]:
    """Do the work; its result, the joules it took, and why these are unknown (NaN) if they are.

    Parameters
    ----------
    meters
        Of the machine; opened anew if it broke before.
    pid
        The process that works, for a meter that looks at one.
    work
        What it raises is raised.
    """
    try:
        meter = meters.usable()
        if isinstance(meter, CpuTimeMeter):
            meter.pid = pid
        meter.start()
    except FAULTS as error:
        meters.note(MeterError(str(error)))
        return work(), math.nan, str(error)
    try:
        result = work()
    finally:  # also if the work failed: some meters keep a thread busy while a window is open
        energy_j, lost = _stopped(meters, meter)
    return result, energy_j, lost


def _stopped(meters: MendedMeter, meter: PowerMeter) -> tuple[float, str]:
    try:
        reading = meter.stop()
    except FAULTS as error:
        meters.note(MeterError(str(error)))
        return math.nan, str(error)
    if reading.rate_hz == 0.0 or not reading.energy_j > 0:  # the rate of a counter is NaN
        return math.nan, f"{reading.duration_s:.3g} s: too short for this meter"
    return reading.energy_j, ""


PRECISIONS = ("float32", "bfloat16", "int8")
TRUSTED = ("float32", "int8")  # bfloat16 is slow where the processor has no instructions for it


class HostRuntime(Runtime):
    """This machine's processor, through PyTorch; its arms are precision x threads.

    All cores in float32 and in int8 are trusted. A rule that tries no kind of arm of which none is
    trusted, such as ``adaptive-safe-gp``, leaves bfloat16 alone unless one is named as trusted.

    Latency is that of the encoder's call, of inputs that are tensors already. Energy is of the same
    call: measured where the processor's counters can be read, and estimated from CPU time
    elsewhere. The counters see all that runs meanwhile, and move about once a millisecond.

    In float32 features are to the last bit those of ``EncoderHalf.encode`` with as many threads,
    and an arm gives the same bits for the same item whenever it is encoded alone. In a batch they
    may differ in the last bits.

    Parameters
    ----------
    device
        ``host``.
    model, seed, modalities, timeout_s, open_timeout_s
        See ``Runtime``.
    meter
        Opens what measures the energy; by default the best there is.
    """

    def __init__(
        self,
        device: str,
        model: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        meter: Callable[[], PowerMeter] = open_meter,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        super().__init__(device, model, seed, modalities, timeout_s, open_timeout_s)
        threads = thread_levels()
        self.space = ArmSpace(
            [Factor("precision", PRECISIONS), Factor("threads", threads, log=True)]
        )
        self.trusted = [self.space.arm(precision=p, threads=threads[-1]) for p in TRUSTED]
        self.meters = MendedMeter(meter)
        self.evidence = "measured"
        self.energy_evidence = self.meters.meter.evidence
        self.meter = self.meters.meter.source

    def precisions(self, arms: Sequence[Arm]) -> Sequence[str]:
        """Theirs, each once."""
        return tuple(dict.fromkeys(str(arm.levels["precision"]) for arm in arms))

    def close(self) -> None:
        """End the encoders' process and close the meter."""
        super().close()
        self.meters.close()

    def _encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str) -> Encoded:
        how = How(str(arm.levels["precision"]), int(arm.levels["threads"]))
        self.process.bring(prepared, cut, how)
        latency_s, energy_j, lost = metered(self.meters, self.process.pid, self.process.run)
        parts = self.process.features(prepared, cut)
        return Encoded(parts, latency_s, energy_j / len(prepared), meter_lost=lost)


class JetsonRuntime(Runtime):
    """A Jetson AGX Orin; its arms are component x power level x load, as of ``JetsonDevice``.

    On the CPU encoders run through PyTorch; on the GPU and the DLA through ONNX Runtime and
    TensorRT, which builds an engine for one shape. So items are encoded one by one, and models
    whose inputs have any shape (Qwen's) run on the CPU alone.

    The power sensors are read about ``rate_hz`` times a second. A single call is shorter than what
    they are good for; each is measured all the same, and the scheduler averages.

    On an imitation of the board everything runs on this machine's CPU through PyTorch, and
    whatever is measured is labelled *simulated*.

    Parameters
    ----------
    device
        ``agx-orin``.
    model, seed, modalities, timeout_s, open_timeout_s
        See ``Runtime``; TensorRT takes minutes to build an engine.
    root, rate_hz, imitate
        See ``JetsonDevice``.
    components
        Those that may be chosen; all by default.

    Raises
    ------
    ValueError
        For an unknown component, or one that cannot run this model's encoders.
    OSError
        If this is no such board.
    """

    def __init__(
        self,
        device: str,
        model: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        *,
        root: str = "/",
        rate_hz: float = RATE_HZ,
        imitate: bool = True,
        components: Sequence[str] = (),
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = BUILD_TIMEOUT_S,
    ) -> None:
        super().__init__(device, model, seed, modalities, timeout_s, open_timeout_s)
        self.board = JetsonDevice(root=root, rate_hz=rate_hz, imitate=imitate)
        try:
            self.space = _space(self.board.space, components)
            if not self.board.imitated and set(_components(self.space)) - {"cpu"}:
                from mllm_sched.pipeline.onnx import check_exportable  # loads ONNX Runtime

                check_exportable(self.half)
        except ValueError:
            self.board.close()
            raise
        self._level: Level | None = None
        self.trusted = full_power_arms(self.space)
        self.evidence, self.energy_evidence = self.board.evidence, self.board.energy_evidence
        self.meter = self.board.meter.source

    def kind(self, prepared: Prepared) -> Hashable:
        """None: never batched."""
        return None

    def describe(self) -> str:
        """As of any runtime, and what the board's clocks and temperature are now."""
        state = ", ".join(f"{name} {value}" for name, value in self.board.state().items())
        hottest_c = self.board.thermals.hottest_c()
        return f"{super().describe()}\nboard at {hottest_c:.0f} degrees Celsius: {state}"

    def close(self) -> None:
        """End the encoders' process, close the meter, put the clocks back."""
        try:
            super().close()
        finally:
            self.board.close()

    def _encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str) -> Encoded:
        how = self._how(arm)
        self._set_level(arm)
        self.process.bring(prepared, cut, how)
        latency_s, energy_j, lost = metered(
            self.board.mended, self.process.pid, lambda: self.process.run(how.load)
        )
        parts = self.process.features(prepared, cut)
        return Encoded(parts, latency_s, energy_j, meter_lost=lost)

    def _set_level(self, arm: Arm) -> None:
        """Set the clocks if another level is wanted; that takes longer than many a call."""
        wanted = arm.levels["power_w"]
        if self._level != wanted:
            self._level = None  # unknown, if this fails
            self.board.bring(arm)
            self._level = wanted

    def _how(self, arm: Arm) -> How:
        asked, load = self.board.request(arm), float(arm.levels["load"])
        if asked["component"] == "cpu":
            return How("float32", int(asked["threads"]), load=load)
        return How(asked["precision"], component=asked["component"], load=load)


def _space(space: ArmSpace, components: Sequence[str]) -> ArmSpace:
    """The arms on some components alone."""
    whole = space.factor("component")
    unknown = [each for each in components if each not in whole.levels]
    if unknown:
        known = ", ".join(map(str, whole.levels))
        raise ValueError(f"components: {unknown[0]!r}: expected some of {known}")
    kept = [level for level in whole.levels if level in components or not components]
    labels = [whole.labels[whole.index(level)] for level in kept]
    rest = [factor for factor in space.factors if factor is not whole]
    return ArmSpace([Factor("component", kept, labels=labels), *rest])


def _components(space: ArmSpace) -> Sequence[str]:
    return [str(level) for level in space.factor("component").levels]


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


def open_runtime(
    device: str,
    model: str,
    *,
    seed: int = 0,
    modalities: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    start: bool = True,
) -> Runtime:
    """The encoders of a model on a device by name.

    Parameters
    ----------
    device
        ``host``, ``agx-orin``, ``agx-orin-sim``, or ``trace:`` and the path of a table.
    model, seed, modalities
        See ``Runtime``.
    settings
        The device's own, by name; see its class.
    start
        Whether their process begins to load at once; else it does when it is first needed.

    Raises
    ------
    ValueError
        For an unknown device, model, modality or setting; the known ones are listed.
    OSError
        If the device, a trace's file or a checkpoint is not there.
    """
    opener = _opener(device)
    settings, parameters = dict(settings or {}), inspect.signature(opener).parameters.values()
    known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(
            f"device {device}: unknown setting {unknown[0]!r}; expected some of {', '.join(known)}"
        )
    runtime = opener(device, model, seed, modalities, **settings)
    if start:
        runtime.process.start()
    return runtime


def _opener(device: str) -> Callable[..., Runtime]:
    if device.startswith("trace:"):
        return TraceRuntime
    openers = {"host": HostRuntime, "agx-orin": JetsonRuntime, "agx-orin-sim": SimulatedRuntime}
    if device not in openers:
        known = "host, agx-orin, agx-orin-sim, trace:PATH.csv"
        raise ValueError(f"device {device!r}: expected one of {known}")
    return openers[device]
