"""The encoders of a model on a device: what an edge agent runs its tasks on.

A runtime knows its arms, turns raw items into what the encoder takes, and encodes them on an arm in
a process of its own, measured. This process holds no weights. Devices by name:

``host``
    This machine, now: precision x threads.
``agx-orin``
    A Jetson AGX Orin: component x power level x load.
``agx-orin-sim``, ``trace:FILE``
    The features are real, latency and energy those of the simulated board or of the table, and
    the time that passes is emulated.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.edge.encoder_process import CrashError, EncoderProcess, HangError, Prepared
from mllm_sched.harness.reading import HarnessError
from mllm_sched.pipeline.checkpoints import bare_encoders
from mllm_sched.pipeline.requests import Item, Part

CALL_TIMEOUT_S = 10.0
# How what an encoder raised begins, if it had no memory: in Python, PyTorch, its CPU's allocator.
NO_MEMORY = ("MemoryError", "OutOfMemoryError", "RuntimeError: [enforce fail at alloc_cpu")
OPEN_TIMEOUT_S = 180.0  # importing, loading, quantising, warming up


@dataclass(frozen=True, eq=False)
class Encoded:
    """What encoding one batch gave and took.

    Attributes
    ----------
    parts
        Features, in the order of the items; none if it failed.
    latency_s
        Of the call, for each of its items; NaN if it failed.
    energy_j
        Per item; NaN if it failed, or if the meter was gone.
    failed
        Why there are no features: ``hangs``, or what went wrong in words.
    why
        Its class, if it failed: ``raised``, ``crashed``, ``hung`` or ``memory``.
    hung_s
        How long was waited for a call before it was killed.
    meter_lost
        Why there is no energy, although there are features.
    behind_s
        By how much making the features took longer than the emulated latency.
    """

    parts: tuple[Part, ...] = ()
    latency_s: float = math.nan
    energy_j: float = math.nan
    failed: str = ""
    why: str = "raised"
    hung_s: float = 0.0
    meter_lost: str = ""
    behind_s: float = 0.0


class Runtime(ABC):
    """Encoders of a model on a device.

    Parameters
    ----------
    name
        Of the device.
    model
        A small one by name, or ``hf:`` and a folder or hub id.
    seed
        Of a small model's weights.
    modalities
        Those to serve; all of the model by default.
    timeout_s
        A call that takes longer counts as hanging, and its process is killed.
    open_timeout_s
        The same for the first call of an arm, which may load and warm up.

    Attributes
    ----------
    space, trusted
        The arms, and those to run before anything is known.
    evidence, energy_evidence, meter
        What latency and energy are, and where the joules come from, in words.
    identity
        Of the model; features are only taken by an LLM with the same.
    modalities
        That are served.
    half
        The encoders without their weights: they know shapes, and prepare items.
    process
        Where the encoders are held and run.
    """

    space: ArmSpace
    trusted: list[Arm]
    evidence: str
    energy_evidence: str
    meter: str

    def __init__(
        self,
        name: str,
        model: str,
        seed: int,
        modalities: Sequence[str],
        timeout_s: float,
        open_timeout_s: float,
    ) -> None:
        for what, seconds in (("timeout_s", timeout_s), ("open_timeout_s", open_timeout_s)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{what}={seconds}: expected seconds above 0")
        self.name = name
        self.model = model
        self.timeout_s = timeout_s
        self.half = bare_encoders(model, modalities, seed)
        self.identity = self.half.identity
        self.modalities = self.half.modalities
        self.process = EncoderProcess(model, seed, self.modalities, timeout_s, open_timeout_s)
        self._turn = threading.Lock()
        self._closing = threading.Event()

    def load(self, arms: Sequence[Arm]) -> None:
        """Wait until the encoders are held as these arms want them.

        Raises HarnessError if they cannot be. What is not loaded here is when it is first wanted.
        """
        with self._turn:
            self.process.load(self.precisions(arms))

    def precisions(self, arms: Sequence[Arm]) -> Sequence[str]:
        """In which PyTorch holds the encoders for these arms."""
        return ("float32",)

    def encoder(self, modality: str) -> str:
        """Name of an encoder, as tables of measurements have it."""
        if modality not in self.modalities:
            raise ValueError(f"no encoder for {modality} here; held: {', '.join(self.modalities)}")
        return f"{self.model}:{modality}"

    def prepare(self, item: Item) -> Prepared:
        """What the encoder takes, made from raw input; ValueError for what it cannot take."""
        inputs, layout = self.half.prepare(item)
        return Prepared(item.modality, inputs, layout)

    def kind(self, prepared: Prepared) -> Hashable:
        """Items of the same kind may be one batch; one of kind None goes alone."""
        return prepared.kind

    def encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str = "projector") -> Encoded:
        """Encode items on an arm, in one call; blocks until it is done.

        Several threads may ask; they take turns. What goes wrong with the arm is in the result:
        nothing of it is raised.

        Parameters
        ----------
        arm
            Of this space.
        prepared
            One item, or several of one kind that is not None.
        cut
            ``encoder`` or ``projector``.

        Raises
        ------
        ValueError
            If the arm is not of this space, the items are no batch, or the cut is unknown.
        RuntimeError
            If the runtime is closed.
        """
        arm = self.space[self.space.index(arm)]
        self._check(prepared, cut)
        with self._turn:
            if self._closing.is_set():
                raise RuntimeError(f"the runtime of {self.name} is closed")
            try:
                encoded = self._encode(arm, prepared, cut)
            except HangError as error:
                return Encoded(failed="hangs", why="hung", hung_s=error.after_s)
            except CrashError as error:
                return Encoded(failed=str(error), why="crashed")
            except HarnessError as error:
                return Encoded(failed=str(error), why=_class_of(str(error)))
        if not all(bool(part.features.isfinite().all()) for part in encoded.parts):
            return Encoded(failed="features that are not finite")
        return encoded

    def describe(self) -> str:
        """Device, arms, trusted arms, evidence and encoders, in a few lines."""
        encoders = [f"{name} by {self.encoder(name)}" for name in self.modalities]
        return "\n".join(
            [
                f"device {self.name}: {self.space!r}",
                *(f"trusted: {arm}" for arm in self.trusted),
                f"latency {self.evidence}, energy {self.energy_evidence}: {self.meter}",
                f"model {self.model} ({self.identity[:12]}): {', '.join(encoders)}",
            ]
        )

    def close(self) -> None:
        """End the encoders' process; a call under way fails. Closing twice does nothing."""
        self._closing.set()
        self.process.kill()
        with self._turn:
            self.process.close()

    @abstractmethod
    def _encode(self, arm: Arm, prepared: Sequence[Prepared], cut: str) -> Encoded:
        """As ``encode``, of what was checked; raises HarnessError for what goes wrong."""

    def _check(self, prepared: Sequence[Prepared], cut: str) -> None:
        if cut not in ("encoder", "projector"):
            raise ValueError(f"cut={cut!r}: an encoder's features are cut at encoder or projector")
        if not prepared:
            raise ValueError("no items: expected at least one")
        kinds = {self.kind(each) for each in prepared}
        if len(prepared) > 1 and (len(kinds) > 1 or None in kinds):
            raise ValueError(
                f"{len(prepared)} items that cannot be one batch: give them one by one"
            )


def _class_of(failed: str) -> str:
    """Of what an encoder raised; its process says the exception's name first."""
    return "memory" if failed.startswith(NO_MEMORY) else "raised"
