"""Encoders on a Jetson AGX Orin. Never run on one by us.

Tested against an imitation of the board's files, and the way through ONNX on this machine's CPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.devices.jetson import JetsonDevice
from mllm_sched.devices.trusted import full_power_arms
from mllm_sched.edge.encoder_process import How, Prepared
from mllm_sched.edge.metered import metered
from mllm_sched.edge.runtime import CALL_TIMEOUT_S, Encoded, Runtime
from mllm_sched.harness.meters import RATE_HZ
from mllm_sched.harness.subprocess_worker import OPEN_TIMEOUT_S
from mllm_sched.pipeline.export_half import check_exportable


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
        open_timeout_s: float = OPEN_TIMEOUT_S,
    ) -> None:
        super().__init__(device, model, seed, modalities, timeout_s, open_timeout_s)
        self.board = JetsonDevice(root=root, rate_hz=rate_hz, imitate=imitate)
        try:
            self.space = _space(self.board.space, components)
            if not self.board.imitated and set(_components(self.space)) - {"cpu"}:
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
