"""Encoders in a process of their own, as seen by the process that asks.

What is asked of ``encoder_child.py``, in the messages of ``harness/child.py``; tensors go as
safetensors, nothing is ever unpickled:

    {"do": "load", "precisions": [...]}    hold the model in these
    {"do": "bring", ...}    inputs behind it: be ready to encode them on an arm
    {"do": "run"}           encode them; answered by the seconds that took
    {"do": "features"}      answered with the features behind it

Only ``run`` is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from mllm_sched.harness.subprocess_worker import Child, CrashError, HangError
from mllm_sched.pipeline.requests import Layout, Part

__all__ = ["CrashError", "EncoderProcess", "HangError", "How", "Prepared"]

TORCH = "torch"
LOAD_S = 60.0  # at most for loading before the first task; whoever starts the agent waits
REMEMBERED = 1024  # kinds that were warmed up
# Threads that wait for each other sleep. If they spin, a call that shares its cores with another
# process takes several times as long and as much CPU time.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """An item as its encoder takes it, and the layout of what that gives."""

    modality: str
    inputs: Mapping[str, Tensor]
    layout: Layout

    @property
    def kind(self) -> Hashable:
        """Modality, shapes and layout: items with the same can be encoded in one call."""
        shapes = sorted((name, tuple(tensor.shape)) for name, tensor in self.inputs.items())
        return self.modality, tuple(shapes), self.layout


@dataclass(frozen=True)
class How:
    """How a call is made.

    Attributes
    ----------
    precision
        ``float32``, ``bfloat16`` or ``int8`` with PyTorch; of ``providers.open_on`` elsewhere.
    threads
        Of PyTorch.
    component
        ``torch`` for PyTorch on this machine's CPU; else a component of ``providers.py``.
    load
        Share of the time that is spent encoding: after the call it pauses, which counts.
    """

    precision: str = "float32"
    threads: int = 1
    component: str = TORCH
    load: float = 1.0


class EncoderProcess(Child):
    """The side that asks.

    Parameters
    ----------
    model, seed, modalities
        What it holds; see ``load_encoders``.
    timeout_s
        For a call, at full load.
    open_timeout_s
        For the first call of an arm for a kind, which may load and warms up.
    """

    def __init__(
        self,
        model: str,
        seed: int,
        modalities: Sequence[str],
        timeout_s: float,
        open_timeout_s: float,
    ) -> None:
        held = json.dumps({"name": model, "seed": seed, "modalities": list(modalities)})
        command = [sys.executable, "-m", "mllm_sched.edge.encoder_child", held]
        super().__init__(command, ENVIRONMENT)
        self.timeout_s = timeout_s
        self.open_timeout_s = open_timeout_s
        self._warm: set[Hashable] = set()

    def load(self, precisions: Sequence[str]) -> None:
        """Wait until the model is held in these precisions; WorkerError as ``Child.exchange``."""
        self.ask({"do": "load", "precisions": list(precisions)}, min(self.open_timeout_s, LOAD_S))

    def bring(self, batch: Sequence[Prepared], cut: str, how: How, warm_up: bool = True) -> None:
        """Hand over inputs, and have everything ready to encode them.

        Parameters
        ----------
        batch
            Items of one kind.
        cut
            ``encoder`` or ``projector``.
        how
            The arm.
        warm_up
            Whether the first call for this kind is made twice, and once unmeasured.

        Raises
        ------
        WorkerError
            As ``Child.exchange``; also from the methods below.
        """
        first = batch[0]
        key = how.precision, how.threads, how.component, cut, len(batch), first.kind
        cold = key not in self._warm
        request = {
            "do": "bring",
            **asdict(how),
            "modality": first.modality,
            "layouts": [asdict(each.layout) for each in batch],
            "cut": cut,
            "warm_up": warm_up and cold,
        }
        inputs = {name: torch.stack([each.inputs[name] for each in batch]) for name in first.inputs}
        self.exchange(request, save(inputs), self.open_timeout_s if cold else self.timeout_s)
        if len(self._warm) >= REMEMBERED:
            self._warm.clear()
        self._warm.add(key)

    def run(self, load: float = 1.0) -> float:
        """Encode what was brought; the seconds it took, with the pause that a load asks for."""
        return float(self.ask({"do": "run", "load": load}, self.timeout_s / load))

    def features(self, batch: Sequence[Prepared], cut: str) -> tuple[Part, ...]:
        """Features of what was run, in the order of the batch."""
        _, data = self.exchange({"do": "features"}, b"", self.timeout_s)
        rows = load(bytes(data))["features"].unbind()
        pairs = zip(batch, rows, strict=True)
        return tuple(Part(each.modality, cut, row, each.layout) for each, row in pairs)

    def close(self) -> None:
        """End the process; the next one begins cold."""
        self._warm.clear()
        super().close()
