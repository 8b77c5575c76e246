"""A Jetson AGX Orin, live. Never run on one by us: tested against an imitation of its files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.example_encoder import ExampleEncoder
from mllm_sched.devices.live import LiveDevice
from mllm_sched.devices.orin_model import COMPONENTS
from mllm_sched.harness.clocks import Clocks
from mllm_sched.harness.cpu_time import usable_cores
from mllm_sched.harness.fake_jetson.board import MARKER
from mllm_sched.harness.ina3221 import find_rails
from mllm_sched.harness.meters import open_meter
from mllm_sched.harness.nvpmodel import CONFIGURATION, PROGRAM
from mllm_sched.harness.sampler import RATE_HZ
from mllm_sched.harness.subprocess_worker import CALL_TIMEOUT_S
from mllm_sched.harness.thermals import Thermals

if TYPE_CHECKING:
    from mllm_sched.devices.model_encoders import ModelEncoders

TENSORRT = "TensorrtExecutionProvider"


class JetsonDevice(LiveDevice):
    """Runs encoders on a Jetson AGX Orin; its arms are component x power level x load.

    A power level is the mode itself where it can be switched live, else clock caps that imitate
    it; ``clocks`` in every row says which. A load is the share of time that the encoder is given:
    after each call it pauses, and the pause is part of what the task takes. Clocks are put back by
    ``close``; see ``Clocks``.

    A call of 0.1 s is too short to be measured: on random input a task is repeated for
    ``window_s``. Items of a model are encoded once, one by one: on the CPU through PyTorch, on the
    GPU and the DLA through TensorRT, which builds an engine for one shape. Models whose inputs
    have any shape (Qwen's) run on the CPU alone.

    On an imitation of the board (a root that holds a file ``IMITATION``) encoders run on this
    machine's CPU, and whatever is measured is labelled *simulated*.

    Parameters
    ----------
    encoder, timeout_s, model
        See ``HostDevice``.
    components
        Those that may be chosen; all by default.
    root, rate_hz
        See ``open_meter``.
    imitate
        Whether clock caps may stand in for modes that need a reboot.
    window_s
        See ``LiveDevice``; not for items of a model.

    Raises ValueError for an unknown component, or one that cannot run the model's encoders, and
    OSError if this is no such board; one line says all that is missing.
    """

    name = "agx-orin"

    def __init__(
        self,
        encoder: str = "clip-vit-l14-336",
        *,
        model: ModelEncoders | None = None,
        components: Sequence[str] = (),
        root: str | Path = "/",
        rate_hz: float = RATE_HZ,
        imitate: bool = True,
        window_s: float = 1.0,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        root = Path(root)
        self.imitated = (root / MARKER).exists()
        if lacking := missing(root, self.imitated):
            raise FileNotFoundError(f"this is no Jetson AGX Orin: {'; '.join(lacking)}")
        self.clocks = Clocks(root)
        self.imitate = imitate
        self._level: tuple[int, str] | None = None  # that is set, and how
        self._cpu = ("torch", "float32") if model else ("cpu", "fp32")
        try:
            space = orin_space(self.clocks, components)
            if model and not self.imitated and set(space.factor("component").levels) - {"cpu"}:
                from mllm_sched.pipeline.onnx import check_exportable  # loads ONNX Runtime

                check_exportable(model.half)
            super().__init__(
                model or ExampleEncoder(encoder, timeout_s),
                space,
                lambda: open_meter(root, "ina3221", rate_hz),
                Thermals(root),
                window_s=0.0 if model else window_s,
            )
        except BaseException:
            self.clocks.close()
            raise
        if self.imitated:
            self.evidence = self.energy_evidence = "simulated"

    def state(self) -> dict[str, str]:
        """Mode, pinned clocks, EMC and fan."""
        return self.clocks.state()

    def close(self) -> None:
        """End the encoders' process, close the meter, put the clocks back."""
        try:
            super().close()
        finally:
            self.clocks.close()

    def bring(self, arm: Arm) -> dict[str, Any]:
        """Set the clocks of the arm's power level, unless they are: that may take a second.

        They are set again if another program changed them. A clock that the kernel holds down
        against heat is left alone; ``throttled`` marks it in a profile.
        """
        power_w = int(arm.levels["power_w"])
        if (
            self._level is None
            or self._level[0] != power_w
            or (self.clocks.changed() and not self.thermals.holding_back())
        ):
            self._level = None  # unknown, if this fails
            self._level = power_w, self.clocks.set_level(power_w, self.imitate)
        return {"clocks": self._level[1]}

    def request(self, arm: Arm) -> dict[str, Any]:
        """Component, precision and threads; on an imitation, this machine's CPU."""
        component, precision = str(arm.levels["component"]), "fp16"
        if self.imitated or component == "cpu":
            component, precision = self._cpu
        return {
            "component": "dla0" if component == "dla" else component,
            "precision": precision,
            "threads": 1 if self.imitated else usable_cores(),
        }


def orin_space(clocks: Clocks, components: Sequence[str] = ()) -> ArmSpace:
    """The paper's arms, with the power levels that this board has (the 32GB module has no 50W)."""
    if unknown := sorted(set(components) - set(COMPONENTS)):
        known = ", ".join(COMPONENTS)
        raise ValueError(f"components: {unknown[0]!r}: expected some of {known}")
    paper = ArmSpace.agx_orin([name for name in COMPONENTS if name in components or not components])
    levels = clocks.levels
    names = [mode.name.removeprefix("MODE_").replace("MAXN", "MAX") for mode in levels.values()]
    power = Factor("power_w", list(levels), log=True, labels=names)
    return ArmSpace([paper.factor("component"), power, paper.factor("load")])


def missing(root: Path, imitated: bool = False) -> list[str]:
    """What a live run on the board needs and is not there."""
    checks = {
        "no INA3221 power sensors": find_rails(root),
        f"no {root / CONFIGURATION}": (root / CONFIGURATION).exists(),
        f"no {root / PROGRAM}": (root / PROGRAM).exists(),
        "no ONNX Runtime with TensorRT (install NVIDIA's onnxruntime-gpu for JetPack)": (
            imitated or _has_tensorrt()
        ),
    }
    return [words for words, is_there in checks.items() if not is_there]


def _has_tensorrt() -> bool:
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return TENSORRT in onnxruntime.get_available_providers()
