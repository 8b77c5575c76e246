"""Encoders as ONNX files, open on a component through ONNX Runtime's execution providers.

A file is named by a digest of all that decides its contents, and exported once.

ONNX Runtime and TensorRT both fall back without an error: to the CPU where a provider is missing,
to the GPU where the DLA cannot take a layer. Here the first is an error, and of the second the
share of layers that stayed on the DLA is read from TensorRT's own log. Never run on a board by us.

PyTorch, ONNX and ONNX Runtime are imported late: devices name the packages without them, and a
file that exists needs no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mllm_sched import paths
from mllm_sched.pipeline.encoders import CHECKPOINT, build_encoder, encoder_spec, example_input

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor, nn

    from mllm_sched.pipeline.split import EncoderHalf

PRECISIONS = ("fp32", "int8")  # on the CPU
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
TENSORRT, CUDA, CPU = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU"))
COMPONENTS = ("cpu", "gpu", "dla0", "dla1")
INPUT, OUTPUT = "inputs", "features"
BATCH = "batch"  # name of the free dimension in exported encoders
OPSET = 20

# Messages of TensorRT while it builds an engine, and of ONNX Runtime about its nodes.
_REGION = re.compile(r"\[DlaLayer\]")
_SWITCHED = (
    re.compile(r"Layer '(?P<name>.+?)' \(\w+\): Unsupported on DLA\. Switching"),
    re.compile(r"Switching to GPU for layer '?(?P<name>[^'\n]+?)'?\s*$", re.MULTILINE),
)
_PLACED = re.compile(r"placed on \[(?P<provider>\w+)\]\. Number of nodes: (?P<count>\d+)")


class FallbackError(RuntimeError):
    """The component asked for is not available; another one would have run the model."""


def export_encoder(
    name: str, precision: str = "fp32", seed: int = 0, folder: Path | None = None
) -> Path:
    """The encoder as an ONNX file with a free batch size.

    ``precision`` is ``fp32``, or ``int8``: weights quantised once, activations at run time. In
    transformers the linear layers are quantised (with signed weights), in convolutional networks
    the convolutions too (with unsigned ones: ONNX Runtime has no other on the CPU). Attention,
    normalisation and the patch embedding stay FP32.

    ``folder`` is where files are kept, the repository's cache by default. Raises ValueError for an
    unknown encoder or precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    folder = folder or paths.CACHE
    path = folder / _file_name(name, precision, seed)
    if path.exists():
        return path
    with _written_whole(path) as unfinished:
        if precision == "fp32":
            _export(name, seed, unfinished)
        else:
            _quantise(name, export_encoder(name, "fp32", seed, folder), unfinished)
    return path


def _file_name(name: str, precision: str, seed: int) -> str:
    import onnxruntime  # whose package may have another name: a build for a GPU, or for a Jetson

    spec = encoder_spec(name)
    recipe: dict[str, Any] = {
        "name": name,
        "family": spec.family,
        "input_shape": spec.input_shape,
        "settings": dict(spec.settings),
        "opset": OPSET,
        "versions": [version("torch"), version("transformers"), onnxruntime.__version__],
    }
    if name.startswith(CHECKPOINT):  # files of a local one; a hub id has its own
        files = sorted(Path(name.removeprefix(CHECKPOINT)).glob("*"))
        stats = [(file.name, file.stat()) for file in files if file.is_file()]
        recipe["files"] = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    text = json.dumps(recipe, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    readable = "".join(letter if letter.isalnum() else "-" for letter in name)[-40:]
    return f"{readable}-seed{seed}-{precision}-{digest}.onnx"


def _export(name: str, seed: int, path: Path) -> None:
    import torch

    # Two items, because the exporter takes a batch of one for a constant.
    inputs = torch.from_numpy(example_input(name, 2, np.random.default_rng(0)))
    free = {INPUT: {0: torch.export.Dim(BATCH, min=1, max=1024)}}
    _to_onnx(build_encoder(name, seed), path, [INPUT], args=(inputs,), dynamic_shapes=free)


def _to_onnx(model: nn.Module, path: Path, inputs: Sequence[str], **more: Any) -> None:
    import torch

    torch.onnx.export(
        model,
        f=path,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=[OUTPUT],
        external_data=False,
        verbose=False,
        **more,
    )


def _quantise(name: str, source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    linear = ["MatMul", "Gemm"]
    if encoder_spec(name).family == "resnet":
        quantize_dynamic(source, path, [*linear, "Conv"], weight_type=QuantType.QUInt8)
    else:
        quantize_dynamic(source, path, linear, weight_type=QuantType.QInt8)


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """A file to export to, named when it is complete: two processes may export at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as scratch,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            unfinished = Path(scratch) / path.name
            yield unfinished
            unfinished.replace(path)
    finally:
        logging.disable(before)


@cache
def open_session(
    name: str, precision: str = "fp32", threads: int = 1, seed: int = 0, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU that maps ``inputs`` (batch, ...) to ``features``; shared, never freed.

    The ``threads`` that share an operator do not spin while they wait, so that CPU time is work.
    Other parameters as for ``export_encoder``.
    """
    import onnxruntime

    if threads < 1:  # which ONNX Runtime takes for all cores
        raise ValueError(f"threads={threads}: expected 1 or more")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = export_encoder(name, precision, seed, folder)
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def open_encoder(
    encoder: str, component: str, precision: str, threads: int, batch: int, seed: int, cache: str
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call of the encoder on a random batch, and where ONNX Runtime really placed it.

    The CPU takes ``threads`` and a precision of ``PRECISIONS``, other components those of
    ``providers_for``. Returns the call, and ``provider`` and ``dla_share`` (NaN where no DLA was
    asked for).
    """
    inputs = example_input(encoder, batch, np.random.default_rng(0))
    if component == "cpu":
        session = open_session(encoder, precision, threads, seed, Path(cache))
        facts: dict[str, Any] = {"provider": CPU}
    else:  # TensorRT wants a fixed batch, and lowers the precision itself
        model = export_encoder(encoder, "fp32", seed, Path(cache))
        session, share = open_on(component, model, precision, batch)
        facts = {"provider": session.get_providers()[0], "dla_share": share}
    quiet = _quiet()

    def call() -> Any:
        return session.run(None, {INPUT: inputs}, quiet)

    call()  # the first call allocates; it is never measured
    return call, facts


def _quiet() -> onnxruntime.RunOptions:
    """Calls without a log, of a session that may have been opened with a full one."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 3
    return options


def open_half(
    half: EncoderHalf,
    modality: str,
    inputs: Mapping[str, Tensor],
    component: str,
    precision: str,
    folder: Path,
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """One encoder of a model on a component, exported for inputs of these shapes.

    Raises as ``check_exportable`` and ``open_on``.
    """
    import torch

    check_exportable(half)
    shapes = [(name, str(each.dtype), tuple(each.shape)) for name, each in sorted(inputs.items())]
    versions = [version(package) for package in ("torch", "transformers", "onnxscript")]
    digest = hashlib.sha256(repr((half.identity, shapes, OPSET, versions)).encode()).hexdigest()
    path = folder / f"{half.config.model_type}-{modality}-{digest[:16]}.onnx"
    if not path.exists():
        _export_half(half, modality, inputs, path)
    session, _ = open_on(component, path, precision)
    quiet = _quiet()

    def call(given: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in given.items()}
        return torch.from_numpy(session.run([OUTPUT], arrays, quiet)[0])

    return call


def check_exportable(half: EncoderHalf) -> None:
    """ValueError if encoders of this kind cannot be exported."""
    if not half.architecture.exportable:
        kind = half.config.model_type
        raise ValueError(
            f"encoders of {kind!r} take inputs of any shape and cannot be exported to ONNX: "
            "only the cpu can run them"
        )


def _export_half(
    half: EncoderHalf, modality: str, inputs: Mapping[str, Tensor], path: Path
) -> None:
    import torch

    class Encoding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = half.model

        def forward(self, **inputs: Any) -> Tensor:
            return half.architecture.encode(self.model, modality, inputs)

    with _written_whole(path) as unfinished:
        _to_onnx(Encoding().eval(), unfinished, list(inputs), kwargs=dict(inputs))


def providers_for(component: str, precision: str = "fp16") -> list[tuple[str, dict[str, str]]]:
    """The execution provider of a component, with its options.

    Engines are not cached: a cached one runs on core 0 whatever ``trt_dla_core`` says (ONNX
    Runtime issue 26680), and only a build says which layers went where. ``precision`` is ``fp32``,
    ``fp16`` or ``int8``, of which a DLA takes the last two.

    Raises ValueError for an unknown component or a precision that it does not take, FallbackError
    if this ONNX Runtime has no provider for it.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component {component!r}: expected one of {', '.join(COMPONENTS)}")
    if component == "cpu":
        return [(CPU, {})]
    import onnxruntime

    available = onnxruntime.get_available_providers()
    dla = component.removeprefix("dla") if component.startswith("dla") else ""
    if dla and precision == "fp32":
        raise ValueError(f"{component}: precision fp32; a DLA takes fp16 or int8")
    options = {
        "trt_fp16_enable": str(precision != "fp32"),
        "trt_int8_enable": str(precision == "int8"),
    }
    if TENSORRT in available:
        if dla:
            options |= {"trt_dla_enable": "True", "trt_dla_core": dla}
        return [(TENSORRT, options)]
    if component == "gpu" and CUDA in available and precision == "fp32":
        return [(CUDA, {})]  # it runs the model as it was exported
    raise FallbackError(
        f"{component} in {precision} needs {TENSORRT}; this ONNX Runtime has "
        f"{', '.join(available)}. Install NVIDIA's onnxruntime-gpu for your JetPack (for a DLA "
        "with TensorRT 10.7 or older, or 11.4.1 and newer)"
    )


def open_on(
    component: str, model: Path, precision: str = "fp16", batch: int = 1
) -> tuple[onnxruntime.InferenceSession, float]:
    """A session on a component, and the share of nodes on the DLA (NaN where none was asked for).

    The free batch dimension of the exported ``model`` is fixed, as TensorRT wants it. Raises
    FallbackError if it would run elsewhere, or no layer on the DLA asked for.
    """
    import onnx
    import onnxruntime

    wanted = providers_for(component, precision)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0  # else neither says where anything went
    options.add_free_dimension_override_by_name(BATCH, batch)
    # Optimised nodes lose their names, by which TensorRT refers to them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _stderr_to_file() as file:
        session = onnxruntime.InferenceSession(str(model), options, providers=wanted)
        file.seek(0)
        log = file.read().decode(errors="replace")
    if session.get_providers()[0] != wanted[0][0]:
        raise FallbackError(f"{component}: asked for {wanted[0][0]}, got {session.get_providers()}")
    if not component.startswith("dla"):
        return session, float("nan")
    names = [node.name for node in onnx.load(model, load_external_data=False).graph.node]
    share = dla_share(log, names)
    if share == 0:
        raise FallbackError(f"{component}: TensorRT put none of {len(names)} layers on the DLA")
    return session, share


def dla_share(log: str, names: Collection[str]) -> float:
    """Share on the DLA of nodes with these names, from the log of opening a session with TensorRT.

    TensorRT lists what it runs on the DLA as regions without their layers, but names every layer
    that it takes off the DLA. Layers that it adds, to convert formats, are not counted.
    """
    if not _REGION.search(log):
        return 0.0
    switched = {match["name"] for pattern in _SWITCHED for match in pattern.finditer(log)}
    left = sum(count for name, count in placed(log).items() if name != TENSORRT)
    off = len(switched & set(names)) + left
    return max(0, len(names) - off) / len(names)


def placed(log: str) -> Mapping[str, int]:
    """Nodes by provider, as ONNX Runtime logs them; a compiled part of a model is one node."""
    return {match["provider"]: int(match["count"]) for match in _PLACED.finditer(log)}


@contextmanager
def _stderr_to_file() -> Iterator[IO[bytes]]:
    """Redirect what libraries write to standard error, below Python, to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield file
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
    finally:
        os.close(kept)
