"""The encoders of a multimodal model, run on real items in a child process.

Beside ``open`` and ``run`` (see ``harness/subprocess_worker.py``) the child is asked:

    {"do": "load", "precisions": [...]}    hold the model in these
    {"do": "features"}    features of the last call, behind the answer

Inputs go behind ``open``. Tensors go as safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mllm_sched import paths
from mllm_sched.harness.subprocess_worker import (
    EncoderServer,
    EncoderWorker,
    WorkerError,
    serve,
)
from mllm_sched.pipeline.checkpoints import bare_encoders, load_encoders
from mllm_sched.pipeline.requests import Item, Layout, Part

TORCH = "torch"  # the component that is this machine's CPU, through PyTorch
FLOAT32 = {"component": TORCH, "precision": "float32", "threads": 1}
LOAD_S = 60.0  # at most for loading before the first task; whoever starts the agent waits
REMEMBERED = 1024  # kinds that were warmed up
# Threads that wait for each other sleep. If they spin, a call that shares its cores with another
# process takes several times as long and as much CPU time.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """An item as its encoder takes it, and the layout of its features."""

    modality: str
    inputs: Mapping[str, Tensor]
    layout: Layout

    @property
    def kind(self) -> Hashable:
        """Modality, shapes and layout: items with the same can be encoded in one call."""
        shapes = sorted((name, tuple(tensor.shape)) for name, tensor in self.inputs.items())
        return self.modality, tuple(shapes), self.layout


class ModelEncoders(EncoderWorker):
    """The parent's side: ``half`` knows shapes and prepares items, and holds no weights.

    Parameters
    ----------
    name, modalities, seed
        See ``load_encoders``.
    cut
        Features are taken after the ``encoder`` or after the ``projector``.
    timeout_s, open_timeout_s
        See ``EncoderWorker``. The longer one is for the first call of an arm for a kind of items,
        which may load and warms up.
    """

    def __init__(
        self,
        name: str,
        seed: int = 0,
        modalities: Sequence[str] = (),
        cut: str = "projector",
        timeout_s: float = 10.0,
        open_timeout_s: float = 180.0,
    ) -> None:
        if cut not in ("encoder", "projector"):
            raise ValueError(f"cut={cut!r}: an encoder's features are cut at encoder or projector")
        self.half = bare_encoders(name, modalities, seed)
        held = {"name": name, "seed": seed, "modalities": list(self.half.modalities)}
        command = [sys.executable, "-m", __name__, json.dumps(held)]
        super().__init__(command, timeout_s, open_timeout_s, ENVIRONMENT)
        self.name, self.cut = name, cut
        self.modalities = {f"{name}:{modality}": modality for modality in self.half.modalities}
        self._warm: set[Hashable] = set()

    def prepare(self, item: Item) -> Prepared:
        """What the encoder takes, made from raw input; ValueError for what it cannot take."""
        return Prepared(item.modality, *self.half.prepare(item))

    def load(self, hows: Sequence[Mapping[str, Any]]) -> None:
        """Wait until the model is held as these need it; WorkerError as ``Child.exchange``."""
        precisions = [how["precision"] for how in hows if how["component"] == TORCH]
        request = {"do": "load", "precisions": list(dict.fromkeys(precisions))}
        self.ask(request, min(self.open_timeout_s, LOAD_S))

    def open(
        self, how: Mapping[str, Any], items: Sequence[Prepared] = (), warm_up: bool = True
    ) -> dict[str, Any]:
        """Hand over items of one kind, and have everything ready to encode them in one call.

        ``how`` says ``component`` (``torch`` or one of ``pipeline/onnx.py``), ``precision`` and
        ``threads``. With ``warm_up`` a first, unmeasured call is made for each new kind.
        """
        if not items:
            raise ValueError("no items: expected at least one")
        first = items[0]
        key = tuple(sorted(how.items())), len(items), first.kind
        is_cold = key not in self._warm
        request = {
            **{"do": "open", **how, "modality": first.modality, "cut": self.cut},
            "layouts": [asdict(each.layout) for each in items],
            "warm_up": warm_up and is_cold,
        }
        inputs = {name: torch.stack([each.inputs[name] for each in items]) for name in first.inputs}
        timeout_s = self.open_timeout_s if is_cold else self.timeout_s
        facts, _ = self.exchange(request, save(inputs), timeout_s)
        if len(self._warm) >= REMEMBERED:
            self._warm.clear()
        self._warm.add(key)
        return dict(facts)

    def features(self, items: Sequence[Prepared]) -> tuple[Part, ...]:
        """Features of the items that were opened and run; WorkerError if they are not finite."""
        _, data = self.exchange({"do": "features"}, b"", self.timeout_s)
        rows = load(bytes(data))["features"]
        if not bool(rows.isfinite().all()):
            raise WorkerError("features that are not finite")
        pairs = zip(items, rows.unbind(), strict=True)
        return tuple(Part(each.modality, self.cut, row, each.layout) for each, row in pairs)

    def _end(self) -> None:
        self._warm.clear()  # the next process begins cold
        super()._end()


Inputs = dict[str, Tensor]


class ModelServer(EncoderServer):
    """The child's side. Projectors run in float32 whatever the precision of the encoder."""

    def __init__(self, name: str, seed: int, modalities: Sequence[str]) -> None:
        super().__init__()
        self.half = load_encoders(name, modalities, seed)
        self._models: dict[str, Any] = {"float32": self.half.model}
        self._sessions: dict[tuple[str, str, str], Callable[[Inputs], Tensor]] = {}
        self._features: list[Tensor] = []

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        """Load models, hand out features, or what every encoder does."""
        if request["do"] == "load":
            for precision in request["precisions"]:
                self._model(precision)
            return None, b""
        if request["do"] == "features":
            return None, save({"features": torch.stack(self._features)})
        return super().answer(request, data)

    def open(
        self, request: dict[str, Any], data: bytes
    ) -> tuple[Callable[[], object], dict[str, Any]]:
        """What is to be called: models loaded, inputs put together."""
        modality, cut = request["modality"], request["cut"]
        layouts = [_layout(**fields) for fields in request["layouts"]]
        rows = {name: stacked.unbind() for name, stacked in load(data).items()}
        items = [{name: rows[name][place] for name in rows} for place in range(len(layouts))]
        torch.set_num_threads(request["threads"])
        precision, component = request["precision"], request["component"]
        if component == TORCH:
            encode = self._with_torch(precision, modality, items)
        else:
            encode = self._with_onnx(precision, component, modality, items)

        @torch.inference_mode()
        def call() -> None:
            features = encode()
            if cut == "projector":
                pairs = zip(features, layouts, strict=True)
                parts = [Part(modality, "encoder", rows, layout) for rows, layout in pairs]
                features = [self.half.project(part) for part in parts]
            self._features = features

        if request["warm_up"]:
            call()
        return call, {}

    def _with_torch(
        self, precision: str, modality: str, items: Sequence[Inputs]
    ) -> Callable[[], list[Tensor]]:
        """Features of each item; one by one in int8, where a call shares one scale."""
        model, encode = self._model(precision), self.half.architecture.encode
        alone = len(items) == 1 or precision == "int8"
        calls = list(items)
        if not alone:
            calls = [{name: torch.cat([item[name] for item in items]) for name in items[0]}]
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
    if precision == "bfloat16":
        return copy.deepcopy(model).to(torch.bfloat16)
    if precision == "int8":
        with warnings.catch_warnings():  # PyTorch's successor to it is a package of its own
            warnings.simplefilter("ignore")
            linear = {torch.nn.Linear}
            return torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)
    raise ValueError(f"precision={precision!r}: expected float32, bfloat16 or int8")


def _layout(grid: list[int] | None, **others: Any) -> Layout:
    return Layout(None if grid is None else (grid[0], grid[1], grid[2]), **others)


def _lowered(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    serve(lambda: ModelServer(**json.loads(sys.argv[1])).answer)
