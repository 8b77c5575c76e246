"""The process that holds a model's encoders, in every precision that was asked for so far.

``encoder_process.py`` says what it is asked.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mllm_sched import paths
from mllm_sched.edge.encoder_process import TORCH
from mllm_sched.harness.subprocess_worker import serve
from mllm_sched.pipeline.checkpoints import load_encoders
from mllm_sched.pipeline.requests import Layout, Part

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
        from mllm_sched.pipeline.export_half import open_half  # a board alone has need of it

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
