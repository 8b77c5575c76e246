"""Exports an encoder to ONNX once, and opens it with ONNX Runtime on the CPU."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_sched import paths
from mllm_sched.pipeline.encoders import CHECKPOINT, encoder_spec, example_input

if TYPE_CHECKING:
    import onnxruntime

PRECISIONS = ("fp32", "int8")
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")  # imported when used
PROVIDER = "CPUExecutionProvider"
INPUT, OUTPUT = "inputs", "features"
OPSET = 20


def export_encoder(
    name: str, precision: str = "fp32", seed: int = 0, folder: Path | None = None
) -> Path:
    """The encoder as an ONNX file with a free batch size; made once, then found again.

    Two processes may ask at once: each writes a file of its own and moves it into place whole.

    Parameters
    ----------
    name
        As for ``encoder_spec``.
    precision
        ``fp32``, or ``int8``: weights quantised once, activations at run time. In transformers
        the linear layers are quantised (with signed weights), in convolutional networks the
        convolutions too (with unsigned ones: ONNX Runtime has no other on the CPU). Attention,
        normalisation and the patch embedding stay FP32.
    seed
        Of the random weights.
    folder
        Where files are kept; the repository's cache by default.

    Raises
    ------
    ValueError
        For an unknown encoder or precision; the known ones are listed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    folder = folder or paths.CACHE
    path = folder / _file_name(name, precision, seed)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished, quiet():
        if precision == "fp32":
            _export(name, seed, unfinished)
        else:
            _quantise(name, export_encoder(name, "fp32", seed, folder), unfinished)
    return path


def open_session(
    name: str, precision: str = "fp32", threads: int = 1, seed: int = 0, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU that maps ``inputs`` (batch, ...) to ``features``.

    Parameters
    ----------
    name, precision, seed, folder
        As for ``export_encoder``.
    threads
        That share one operator. They do not spin while they wait, so that CPU time is work.

    Raises
    ------
    RuntimeError
        If ONNX Runtime would run it elsewhere than on the CPU.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: expected at least 1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = export_encoder(name, precision, seed, folder)
    session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    if session.get_providers() != [PROVIDER]:
        raise RuntimeError(f"{name}: asked for {PROVIDER}, got {session.get_providers()}")
    return session


def _file_name(name: str, precision: str, seed: int) -> str:
    """Name by all that decides the contents, so that a stale file is never taken."""
    import onnxruntime  # whose package may have another name: a build for a GPU, or for a Jetson

    spec = encoder_spec(name)
    versions = [version("torch"), version("transformers"), onnxruntime.__version__]
    recipe: dict[str, Any] = {
        "name": name,
        "family": spec.family,
        "input_shape": spec.input_shape,
        "settings": dict(spec.settings),
        "opset": OPSET,
        "versions": versions,
    }
    if name.startswith(CHECKPOINT):
        recipe["files"] = _fingerprint(Path(name.removeprefix(CHECKPOINT)))
    text = json.dumps(recipe, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    readable = "".join(letter if letter.isalnum() else "-" for letter in name)[-40:]
    return f"{readable}-seed{seed}-{precision}-{digest}.onnx"


def _fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Files of a local checkpoint by size and time; empty for a hub id, which has its own."""
    files = sorted(file for file in folder.glob("*") if file.is_file())
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _export(name: str, seed: int, path: Path) -> None:
    import torch  # seconds to import; a file that exists needs neither it nor transformers

    from mllm_sched.pipeline.models import build_encoder

    # Two items, because the exporter takes a batch of one for a constant.
    inputs = torch.from_numpy(example_input(name, 2, np.random.default_rng(0)))
    torch.onnx.export(
        build_encoder(name, seed),
        (inputs,),
        path,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=1024)}},
        external_data=False,
        verbose=False,
    )


def _quantise(name: str, source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    linear = ["MatMul", "Gemm"]
    if encoder_spec(name).family == "resnet":
        quantize_dynamic(source, path, [*linear, "Conv"], weight_type=QuantType.QUInt8)
    else:
        quantize_dynamic(source, path, linear, weight_type=QuantType.QInt8)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write; it takes its name only when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as scratch:
        unfinished = Path(scratch) / path.name
        yield unfinished
        unfinished.replace(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's advice, which nobody can act on here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
