"""What the devices that really run something have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mllm_sched import extras
from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices.base import Device, Encoded
from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.reading import HarnessError, MeterError, PowerMeter
from mllm_sched.harness.subprocess_worker import Calls, CrashError, EncoderWorker, HangError
from mllm_sched.harness.thermals import Thermals
from mllm_sched.pipeline.onnx import PACKAGES
from mllm_sched.tasks import Task

if TYPE_CHECKING:
    from mllm_sched.devices.model_encoders import Prepared

# How what an encoder raised begins, if it had no memory: in Python, PyTorch, its CPU's allocator.
NO_MEMORY = ("MemoryError", "OutOfMemoryError", "RuntimeError: [enforce fail at alloc_cpu")
METER_FAULTS = (MeterError, OSError, ValueError)  # of files that are gone, or hold no number


class LiveDevice(ABC):
    """Runs encoders in a process of their own, and measures them.

    Either one encoder on random input, through ONNX Runtime: what is profiled. Or the encoders of
    a multimodal model on real items: what an agent serves.

    A subclass says what its arms are (``space``), what an arm asks of the encoders' process
    (``request``), and may do something before each arm (``bring``).

    Parameters
    ----------
    open_meter
        Opens the meter; called again after one broke.
    repeats, window_s
        A task is run that often, and for that long at least, per measurement; the mean is taken.
    """

    name: str
    evidence = "measured"
    batches = False

    def __init__(
        self,
        encoders: EncoderWorker,
        space: ArmSpace,
        open_meter: Callable[[], PowerMeter],
        thermals: Thermals,
        repeats: int = 1,
        window_s: float = 0.0,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats={repeats}: expected at least 1")
        self.encoders = encoders
        self.modalities = dict(encoders.modalities)
        self.space = space
        self.thermals = thermals
        self.repeats = repeats
        self.window_s = window_s
        self.open_meter = open_meter
        self._meter, self._meter_broke = open_meter(), False
        self.energy_evidence = self._meter.evidence

    @property
    def meter(self) -> PowerMeter:
        """What measures the energy, opened anew if it broke.

        Raises MeterError if it cannot be opened, or if what can be opened is of other evidence: an
        estimate must not take the place of a measurement unseen.
        """
        if self._meter_broke:
            self._meter.close()
            try:
                opened = self.open_meter()
            except (OSError, ValueError) as error:
                raise MeterError(f"the meter cannot be opened again: {error}") from error
            if opened.evidence != self._meter.evidence:
                opened.close()
                lost, left = self._meter.source, opened.source
                raise MeterError(f"the meter cannot be opened again: {lost}; there is only {left}")
            self._meter, self._meter_broke = opened, False
        if isinstance(self._meter, CpuTimeMeter):
            self._meter.pid = self.encoders.pid
        return self._meter

    def run(self, arm: Arm, task: Task, items: Sequence[Prepared] = ()) -> Encoded:
        """Run the task on the arm, now.

        The first run of an arm may also open its encoder; that is not part of the measurement.
        Items of a model are encoded in one call. If the encoder or the meter failed, the
        measurement says why.

        Raises ValueError if the task is for another encoder or modality, the arm is not of this
        space, or the items are no batch.
        """
        check_task(self, task, items, self.batches)
        arm = self.space[self.space.index(arm)]
        batch = len(items) or self.batch(arm)
        calls = math.ceil(task.size / batch)
        try:
            self.prepare(arm, items)
            made, energy_j, lost = self._metered(arm, calls * self.repeats)
            parts = self.encoders.features(items)
        except HarnessError as error:
            return failed_run(self, arm, task, error)
        rounds = made.count / calls
        return Encoded(
            arm,
            task,
            made.total_s / rounds,
            energy_j / rounds * task.size / (calls * batch),
            self.evidence,
            self.energy_evidence,
            failed=lost,
            cause="meter" if lost else "",
            parts=parts,
        )

    def prepare(self, arm: Arm, items: Sequence[Prepared] = ()) -> dict[str, Any]:
        """Bring the machine and the encoders' process to the arm; HarnessError if that fails.

        Returns ``provider`` and, where it applies, ``dla_share`` and ``clocks``.
        """
        facts = self.bring(arm)
        return {**self.encoders.open(self.request(arm), items), **facts}

    def require_packages(self) -> None:
        """Raise MissingPackage unless what exports and runs encoders is installed."""
        extras.require(*PACKAGES)

    def work(self, arm: Arm) -> Callable[[float], Calls]:
        """Calls the prepared arm for some seconds, and says what the calls took."""
        load = float(arm.levels.get("load", 1.0))
        return lambda seconds: self.encoders.run(1, seconds, load)

    def batch(self, arm: Arm) -> int:
        """Items that one call serves."""
        return int(arm.levels.get("batch", 1))

    def load(self, arms: Sequence[Arm]) -> None:
        """Load a model's encoders as these arms need them; HarnessError if that fails."""
        self.encoders.load([self.request(arm) for arm in arms])

    @property
    def meter_source(self) -> str:
        """Where the joules come from, in words."""
        return self._meter.source

    def note(self, error: Exception) -> None:
        """Take note of what went wrong: a meter that broke is opened anew before the next arm."""
        self._meter_broke = self._meter_broke or isinstance(error, MeterError | OSError)

    def state(self) -> Mapping[str, str]:
        """What else decides the numbers, for the record."""
        return {}

    def close(self) -> None:
        """End the encoders' process and close the meter. Closing twice does nothing."""
        self.encoders.close()
        self._meter.close()

    @abstractmethod
    def request(self, arm: Arm) -> dict[str, Any]:
        """What is asked of the encoders' process for this arm: component, precision, threads."""

    def bring(self, arm: Arm) -> dict[str, Any]:
        """Bring the machine, without the encoder, to the arm; what was done, for the record."""
        return {}

    def _metered(self, arm: Arm, calls: int) -> tuple[Calls, float, str]:
        """What the calls took, their joules, and why these are unknown (NaN) if they are."""
        load = float(arm.levels.get("load", 1.0))
        try:
            meter = self.meter
            meter.start()
        except METER_FAULTS as error:
            self.note(MeterError(str(error)))
            return self.encoders.run(calls, self.window_s, load), math.nan, str(error)
        try:
            made = self.encoders.run(calls, self.window_s, load)
        finally:  # some meters keep a thread busy while a window is open
            energy_j, lost = self._stopped(meter)
        return made, energy_j, lost

    def _stopped(self, meter: PowerMeter) -> tuple[float, str]:
        try:
            reading = meter.stop()
        except METER_FAULTS as error:
            self.note(MeterError(str(error)))
            return math.nan, str(error)
        if reading.rate_hz == 0.0 or not reading.energy_j > 0:  # the rate of a counter is NaN
            return math.nan, f"{reading.duration_s:.3g} s: too short for this meter; give repeats"
        return reading.energy_j, ""


def check_task(device: Device, task: Task, items: Sequence[Prepared], batches: bool) -> None:
    """ValueError for a task of another encoder, or items that are no batch of it."""
    if device.modalities.get(task.encoder) != task.modality:
        held = ", ".join(f"{name!r} ({takes})" for name, takes in device.modalities.items())
        raise ValueError(f"task for {task.encoder!r} ({task.modality}): this device runs {held}")
    if not items:
        return
    if (len(items), items[0].modality) != (task.size, task.modality):
        raise ValueError(f"{len(items)} items of {items[0].modality} for another task: {task}")
    if len(items) > 1 and (not batches or len({item.kind for item in items}) > 1):
        raise ValueError(f"{len(items)} items that cannot be one batch: give them one by one")


def failed_run(device: Device, arm: Arm, task: Task, error: HarnessError) -> Encoded:
    """The measurement of a run that came to nothing."""
    cause = "memory" if str(error).startswith(NO_MEMORY) else "raised"
    if isinstance(error, CrashError | HangError):
        cause = "crashed" if isinstance(error, CrashError) else "hung"
    return Encoded(
        arm,
        task,
        math.nan,
        math.nan,
        device.evidence,
        device.energy_evidence,
        failed=str(error),
        cause=cause,
        hung_s=error.after_s if isinstance(error, HangError) else 0.0,
    )
