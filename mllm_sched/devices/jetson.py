"""A Jetson AGX Orin, live. Never run on one by us: tested against an imitation of its files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.live import CALL_TIMEOUT_S, LiveDevice
from mllm_sched.harness.clocks import CONFIGURATION, PROGRAM, Clocks
from mllm_sched.harness.cpu_time import usable_cores
from mllm_sched.harness.fake_jetson.board import MARKER
from mllm_sched.harness.ina3221 import find_channels
from mllm_sched.harness.meters import RATE_HZ, PowerMeter, open_meter
from mllm_sched.harness.thermals import Thermals

TENSORRT = "TensorrtExecutionProvider"
PRECISION = {"gpu": "fp16", "dla": "fp16", "cpu": "fp32"}


class JetsonDevice(LiveDevice):
    """Runs one encoder on a Jetson AGX Orin; its arms are component x power level x load.

    A power level is the mode itself where it can be switched live, else clock caps that imitate
    it; ``clocks`` in every row says which. A load is the share of time that the encoder is given:
    after each call it pauses, and the pause is part of what the task takes. Everything is put back
    by ``close``; see ``Clocks``.

    A call of 0.1 s is too short to be measured. A task is therefore repeated for ``window_s``.

    On an imitation of the board (a root that holds a file ``IMITATION``) encoders run on this
    machine's CPU, and whatever is measured is labelled *simulated*.

    Parameters
    ----------
    encoder
        A name of ``ENCODERS``, or ``hf:PATH_OR_HUB_ID`` for a real checkpoint.
    seed
        Taken for the sake of ``open_device``; a live device draws nothing.
    root
        Of the board's file system.
    rate_hz
        Readings per second of the power sensors.
    imitate
        Whether clock caps may stand in for modes that need a reboot.
    repeats, window_s, weights_seed, timeout_s
        See ``LiveDevice``.

    Raises
    ------
    OSError
        If this is no such board; one line says all that is missing.
    """

    name = "agx-orin"

    def __init__(
        self,
        encoder: str = "clip-vit-l14-336",
        seed: Any = 0,
        root: str | Path = "/",
        rate_hz: float = RATE_HZ,
        imitate: bool = True,
        repeats: int = 1,
        window_s: float = 1.0,
        weights_seed: int = 0,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        root = Path(root)
        self.imitated = (root / MARKER).exists()
        if lacking := missing(root, self.imitated):
            raise FileNotFoundError(f"this is no Jetson AGX Orin: {'; '.join(lacking)}")
        self.clocks = Clocks(root)
        self.imitate = imitate

        def meter() -> PowerMeter:
            return open_meter(root, "ina3221", rate_hz)

        try:
            super().__init__(
                encoder,
                orin_space(self.clocks),
                meter,
                Thermals(root),
                repeats,
                window_s,
                weights_seed,
                timeout_s,
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
        """End the encoder's process, close the meter, put the clocks back."""
        try:
            super().close()
        finally:
            self.clocks.close()

    def bring(self, arm: Arm) -> dict[str, Any]:
        """Set the clocks of the arm's power level."""
        return {"clocks": self.clocks.set_level(int(arm.levels["power_w"]), self.imitate)}

    def request(self, arm: Arm) -> dict[str, Any]:
        """Component, precision and threads; on an imitation, this machine's CPU."""
        component = str(arm.levels["component"])
        if self.imitated:
            return {"component": "cpu", "precision": "fp32", "threads": 1}
        return {
            "component": "dla0" if component == "dla" else component,
            "precision": PRECISION[component],
            "threads": usable_cores(),
        }


def orin_space(clocks: Clocks) -> ArmSpace:
    """The paper's arms, with the power levels that this board has (the 32GB module has no 50W)."""
    paper = ArmSpace.agx_orin()
    levels = clocks.levels
    names = [mode.name.removeprefix("MODE_").replace("MAXN", "MAX") for mode in levels.values()]
    power = Factor("power_w", list(levels), log=True, labels=names)
    return ArmSpace([paper.factor("component"), power, paper.factor("load")])


def missing(root: Path, imitated: bool = False) -> list[str]:
    """What a live run on the board needs and is not there."""
    checks: list[tuple[Callable[[], bool], str]] = [
        (lambda: bool(find_channels(root)), "no INA3221 power sensors"),
        (lambda: (root / CONFIGURATION).exists(), f"no {root / CONFIGURATION}"),
        (lambda: (root / PROGRAM).exists(), f"no {root / PROGRAM}"),
        (
            lambda: imitated or _tensorrt(),
            "no ONNX Runtime with TensorRT (install NVIDIA's onnxruntime-gpu for JetPack)",
        ),
    ]
    return [words for there, words in checks if not there()]


def _tensorrt() -> bool:
    """Whether there is an ONNX Runtime that was built with it."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return TENSORRT in onnxruntime.get_available_providers()
