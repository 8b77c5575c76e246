"""A model's encoders in a process of their own: the side that asks, and the process itself.

What is asked, in the messages of ``harness/subprocess_worker.py``; tensors go as safetensors,
nothing is ever unpickled:

    {"do": "load", "precisions": [...]}    hold the model in these
    {"do": "bring", ...}    inputs behind it: be ready to encode them on an arm
    {"do": "run"}           encode them; answered by the seconds that took
    {"do": "features"}      answered with the features behind it

Only ``run`` is measured.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mllm_sched import paths
from mllm_sched.harness.subprocess_worker import Child, CrashError, HangError, serve
from mllm_sched.pipeline.checkpoints import load_encoders
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
        ``float32``, ``bfloat16`` or ``int8`` with PyTorch; of ``onnx.open_on`` elsewhere.
    threads
        Of PyTorch.
    component
        ``torch`` for PyTorch on this machine's CPU; else a component of ``pipeline/onnx.py``.
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
        command = [sys.executable, "-m", "mllm_sched.edge.encoder_process", held]
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


Inputs = dict[str, Tensor]
INT8 = "int8"


class LoadedEncoders:
    """The side that answers.

    Projectors, which are small, run in float32 whatever the precision of the encoder.

    Parameters
    ----------
    name, seed, modalities
        As for ``load_encoders``.
    """

    def __init__(self, name: str, seed: int, modalities: Sequence[str]) -> None:
        self.half = load_encoders(name, modalities, seed)
        self._models: dict[str, Any] = {"float32": self.half.model}
        self._sessions: dict[tuple[str, str, str], Callable[[Inputs], Tensor]] = {}
        self._call: Callable[[], list[Tensor]] | None = None
        self._features: list[Tensor] = []

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        """Do what is asked."""
        do = request.pop("do")
        if do == "bring":
            self._call, self._features = self._brought(request, load(data)), []
            if request["warm_up"]:
                self._call()
            return None, b""
        if do == "load":
            for precision in request["precisions"]:
                self._model(precision)
            return None, b""
        if do == "run":
            return self._run(request["load"]), b""
        return None, save({"features": torch.stack(self._features)})

    def _run(self, busy_share: float) -> float:
        if self._call is None:
            raise ValueError("nothing was brought to run")
        begun_s = time.perf_counter()
        self._features = self._call()
        if pause := 1 / busy_share - 1:
            time.sleep(pause * (time.perf_counter() - begun_s))
        return time.perf_counter() - begun_s

    def _brought(self, request: dict[str, Any], inputs: Inputs) -> Callable[[], list[Tensor]]:
        """What is to be called, ready to be: models loaded, inputs put together."""
        modality, cut = request["modality"], request["cut"]
        layouts = [_layout(**fields) for fields in request["layouts"]]
        rows = {name: stacked.unbind() for name, stacked in inputs.items()}
        items = [{name: rows[name][place] for name in rows} for place in range(len(layouts))]
        torch.set_num_threads(request["threads"])
        precision, component = request["precision"], request["component"]
        if component == TORCH:
            encode = self._with_torch(precision, modality, items)
        else:
            encode = self._with_onnx(precision, component, modality, items)

        @torch.inference_mode()
        def call() -> list[Tensor]:
            features = encode()
            if cut == "encoder":
                return features
            pairs = zip(features, layouts, strict=True)
            parts = [Part(modality, "encoder", rows, layout) for rows, layout in pairs]
            return [self.half.project(part) for part in parts]

        return call

    def _with_torch(
        self, precision: str, modality: str, items: Sequence[Inputs]
    ) -> Callable[[], list[Tensor]]:
        """Features of each item. A batch is one call, except in int8.

        There the scale of activations is drawn over the whole call, and an item's features would
        depend on whose else it was encoded with.
        """
        model, encode = self._model(precision), self.half.architecture.encode
        alone = len(items) == 1 or precision == INT8
        calls = [dict(item) for item in items] if alone else [_joined(items)]
        if precision == "bfloat16":
            calls = [{name: _lowered(each) for name, each in call.items()} for call in calls]

        def features() -> list[Tensor]:
            rows = [encode(model, modality, dict(call)).float() for call in calls]
            return rows if alone else list(rows[0].chunk(len(items)))

        return features

    def _with_onnx(
        self, precision: str, component: str, modality: str, items: Sequence[Inputs]
    ) -> Callable[[], list[Tensor]]:
        """Features of each item, one by one: what was built for the component takes one shape."""
        from mllm_sched.pipeline.onnx import open_half  # a board alone has need of it

        key = precision, component, modality
        if key not in self._sessions:
            self._sessions[key] = open_half(
                self.half, modality, items[0], component, precision, paths.CACHE
            )
        session = self._sessions[key]
        return lambda: [session(item) for item in items]

    def _model(self, precision: str) -> Any:
        if precision not in self._models:
            self._models[precision] = _converted(self.half.model, precision)
        return self._models[precision]


def _converted(model: Any, precision: str) -> Any:
    """A copy of a model in float32, in another precision."""
    if precision == "bfloat16":
        return copy.deepcopy(model).to(torch.bfloat16)
    if precision == INT8:
        with warnings.catch_warnings():  # PyTorch's successor to it is a package of its own
            warnings.simplefilter("ignore")
            linear = {torch.nn.Linear}
            return torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)
    raise ValueError(f"precision={precision!r}: expected float32, bfloat16 or int8")


def _joined(items: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([item[name] for item in items]) for name in items[0]}


def _lowered(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _layout(grid: list[int] | None, **others: Any) -> Layout:
    return Layout(None if grid is None else (grid[0], grid[1], grid[2]), **others)


if __name__ == "__main__":
    serve(lambda: LoadedEncoders(**json.loads(sys.argv[1])).answer)
