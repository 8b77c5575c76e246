"""What the devices that really run something have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mllm_sched import extras, paths
from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.meters import MendedMeter, PowerMeter
from mllm_sched.harness.reading import HarnessError, Reading
from mllm_sched.harness.subprocess_worker import OPEN_TIMEOUT_S, Calls, Worker
from mllm_sched.harness.thermals import Thermals
from mllm_sched.measurement import Measurement
from mllm_sched.pipeline.encoders import encoder_spec
from mllm_sched.pipeline.onnx import PACKAGES
from mllm_sched.tasks import Task

CALL_TIMEOUT_S = 60.0


class LiveDevice(ABC):
    """Runs one encoder in a process of its own, and measures it.

    A subclass says what its arms are (``space``), what an arm asks of the encoder's process
    (``request``), and may do something before each arm (``bring``).

    Parameters
    ----------
    encoder
        A name of ``ENCODERS``, or ``hf:PATH_OR_HUB_ID`` for a real checkpoint.
    space
        The arms.
    open_meter
        Opens the meter; called again after one broke.
    thermals
        Of the machine.
    repeats, window_s
        A task is run that often, and for that long at least, per measurement; the mean is taken.
    weights_seed
        Of the random weights; each value is one exported file of its own.
    timeout_s
        For a single call of the encoder, after which it counts as hanging.

    Raises
    ------
    ValueError
        For an unknown encoder, or ``repeats`` below 1.
    """

    name: str
    evidence = "measured"
    stationary = False  # other programs come and go

    def __init__(
        self,
        encoder: str,
        space: ArmSpace,
        open_meter: Callable[[], PowerMeter],
        thermals: Thermals,
        repeats: int = 1,
        window_s: float = 0.0,
        weights_seed: int = 0,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats={repeats}: expected at least 1")
        self.spec = encoder_spec(encoder)
        self.modalities = {self.spec.name: self.spec.modality}
        self.space = space
        self.thermals = thermals
        self.repeats = repeats
        self.window_s = window_s
        self.weights_seed = weights_seed
        self.timeout_s = timeout_s
        self.worker = Worker()
        self.mended = MendedMeter(open_meter)
        self.energy_evidence = self.meter.evidence

    @property
    def meter(self) -> PowerMeter:
        """What measures the energy; another one after it broke."""
        return self.mended.meter

    def run(self, arm: Arm, task: Task) -> Measurement:
        """Run the task on the arm, now.

        The first run of an arm may also export its encoder and open its session; neither is part
        of the measurement.

        Returns
        -------
        The measurement; ``failed`` says why if the encoder or the meter failed.

        Raises
        ------
        ValueError
            If the task is for another encoder or modality, or the arm is not of this space.
        """
        self._check(task)
        arm = self.space[self.space.index(arm)]
        batch = self.batch(arm)
        calls = math.ceil(task.size / batch)
        try:
            self.prepare(arm)
            made, reading = self._measured(arm, calls * self.repeats)
        except HarnessError as error:
            self.note(error)
            return self._measurement(arm, task, failed=str(error))
        if not reading.energy_j > 0:
            return self._measurement(
                arm, task, failed="window too short for the energy meter; give more repeats"
            )
        rounds = made.count / calls
        return self._measurement(
            arm,
            task,
            made.total_s / rounds,
            reading.energy_j / rounds * task.size / (calls * batch),
        )

    def prepare(self, arm: Arm) -> dict[str, Any]:
        """Bring the machine and the encoder's process to the arm, and say what was found.

        Returns
        -------
        ``provider`` and, where it applies, ``dla_share`` and ``clocks``.

        Raises
        ------
        HarnessError
            If the machine cannot be brought there, or the encoder cannot be opened.
        MissingPackage
            See ``require_packages``.
        """
        self.require_packages()
        meter = self.mended.usable()
        facts = self.bring(arm)
        opened = self.worker.ask({"do": "open", **self._wanted(arm)}, OPEN_TIMEOUT_S)
        if isinstance(meter, CpuTimeMeter):
            meter.pid = self.worker.pid
        return {**opened, **facts}

    def require_packages(self) -> None:
        """Raise MissingPackage unless what exports and runs encoders is installed."""
        extras.require(*PACKAGES)

    def work(self, arm: Arm) -> Callable[[float], Calls]:
        """Calls the prepared arm for some seconds, and says what the calls took."""
        return lambda seconds: self._calls(arm, seconds)

    def batch(self, arm: Arm) -> int:
        """Items that one call serves."""
        return int(arm.levels.get("batch", 1))

    def note(self, error: HarnessError) -> None:
        """Take note of what went wrong: a meter that broke is opened anew before the next arm."""
        self.mended.note(error)

    def state(self) -> dict[str, str]:
        """What else decides the numbers, for the record."""
        return {}

    def close(self) -> None:
        """End the encoder's process and close the meter. Closing twice does nothing."""
        self.worker.close()
        self.mended.close()

    @abstractmethod
    def request(self, arm: Arm) -> dict[str, Any]:
        """What is asked of the encoder's process for this arm: component, precision, threads."""

    def bring(self, arm: Arm) -> dict[str, Any]:
        """Bring the machine, without the encoder, to the arm; what was done, for the record."""
        return {}

    def _load(self, arm: Arm) -> float:
        return float(arm.levels.get("load", 1.0))

    def _wanted(self, arm: Arm) -> dict[str, Any]:
        """What the encoder's process has to open."""
        return {
            "encoder": self.spec.name,
            "seed": self.weights_seed,
            "cache": str(paths.CACHE),
            "batch": 1,
            **self.request(arm),
        }

    def _calls(self, arm: Arm, seconds: float, calls: int = 1) -> Calls:
        request = {"do": "run", **self._wanted(arm), "load": self._load(arm)}
        answer = self.worker.ask(
            {**request, "seconds": seconds, "calls": calls},
            seconds + self.timeout_s * calls / self._load(arm),
        )
        return Calls(**answer)

    def _measured(self, arm: Arm, calls: int) -> tuple[Calls, Reading]:
        self.meter.start()
        made = self._calls(arm, self.window_s, calls)
        return made, self.meter.stop()

    def _check(self, task: Task) -> None:
        if (task.encoder, task.modality) != (self.spec.name, self.spec.modality):
            raise ValueError(
                f"task for {task.encoder!r} ({task.modality}): this device runs "
                f"{self.spec.name!r} ({self.spec.modality}); open one with encoder={task.encoder!r}"
            )

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
