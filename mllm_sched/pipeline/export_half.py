"""Encoders of a multimodal model as ONNX files, for what runs no PyTorch: a board's GPU and DLA."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from mllm_sched.pipeline.export import OPSET, OUTPUT, quiet, written_whole
from mllm_sched.pipeline.onnx import open_on
from mllm_sched.pipeline.split import EncoderHalf

VERSIONS = ("torch", "transformers", "onnxscript")


def export_half(
    half: EncoderHalf, modality: str, inputs: Mapping[str, Tensor], folder: Path
) -> Path:
    """One encoder of a model as an ONNX file for inputs of one shape; made once, then found again.

    Parameters
    ----------
    half
        In float32, of an architecture that is ``exportable``.
    modality
        Of the encoder.
    inputs
        An example: names, types and shapes are what counts.
    folder
        Where files are kept.

    Raises
    ------
    ValueError
        If encoders of this kind cannot be exported.
    """
    check_exportable(half)
    path = folder / _file_name(half, modality, inputs)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished, quiet():
        torch.onnx.export(
            _Encoding(half, modality).eval(),
            (),
            unfinished,
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
    return path


def open_half(
    half: EncoderHalf,
    modality: str,
    inputs: Mapping[str, Tensor],
    component: str,
    precision: str,
    folder: Path,
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """One encoder on a component, ready to be called with inputs of the shapes of the example.

    Raises
    ------
    ValueError
        If encoders of this kind cannot be exported.
    FallbackError
        If the component cannot be had; see ``open_on``.
    """
    path = export_half(half, modality, inputs, folder)
    session, _ = open_on(component, path, precision)
    options = onnxruntime.RunOptions()
    options.log_severity_level = 3  # the session itself was opened to tell everything

    def call(given: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in given.items()}
        return torch.from_numpy(session.run([OUTPUT], arrays, options)[0])

    return call


def check_exportable(half: EncoderHalf) -> None:
    """ValueError if encoders of this kind cannot be exported."""
    if not half.architecture.exportable:
        kind = half.config.model_type
        raise ValueError(
            f"encoders of {kind!r} take inputs of any shape and cannot be exported to ONNX: "
            "only the cpu can run them"
        )


class _Encoding(nn.Module):
    """What is exported: the encoder with what its architecture does around it."""

    def __init__(self, half: EncoderHalf, modality: str) -> None:
        super().__init__()
        self.model = half.model
        self.encode = half.architecture.encode
        self.modality = modality

    def forward(self, **inputs: Any) -> Tensor:
        return self.encode(self.model, self.modality, inputs)


def _file_name(half: EncoderHalf, modality: str, inputs: Mapping[str, Tensor]) -> str:
    """Name by all that decides the contents, so that a stale file is never taken."""
    shapes = [(name, str(each.dtype), tuple(each.shape)) for name, each in sorted(inputs.items())]
    recipe = (half.identity, shapes, OPSET, [version(package) for package in VERSIONS])
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    return f"{half.config.model_type}-{modality}-{digest}.onnx"
