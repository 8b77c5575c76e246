"""An encoder by name, open on a component of the board through ONNX Runtime's execution providers.

ONNX Runtime and TensorRT both fall back in silence: to the CPU where a provider is missing, to the
GPU where the DLA cannot take a layer. Here the first is an error, and of the second the share of
layers that stayed on the DLA is read from TensorRT's own log. Never run on a board by us.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime

from mllm_sched.pipeline.encoders import example_input
from mllm_sched.pipeline.export import INPUT, export_encoder, open_session

TENSORRT, CUDA, CPU = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU"))
COMPONENTS = ("cpu", "gpu", "dla0", "dla1")
BATCH = "batch"  # name of the free dimension in exported encoders

# What TensorRT says while it builds an engine, and ONNX Runtime of its nodes.
_REGION = re.compile(r"\[DlaLayer\]")
_SWITCHED = (
    re.compile(r"Layer '(?P<name>.+?)' \(\w+\): Unsupported on DLA\. Switching"),
    re.compile(r"Switching to GPU for layer '?(?P<name>[^'\n]+?)'?\s*$", re.MULTILINE),
)
_PLACED = re.compile(r"placed on \[(?P<provider>\w+)\]\. Number of nodes: (?P<count>\d+)")


class FallbackError(RuntimeError):
    """What was asked for cannot be had, and something else would have run in its place."""


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a model really run.

    Attributes
    ----------
    provider
        Of ONNX Runtime.
    nodes
        Of the model.
    on_dla
        Of these, those that stayed on the DLA; None where no DLA was asked for.
    regions
        Into how many pieces the DLA's part falls; at most 16 are possible.
    """

    provider: str
    nodes: int
    on_dla: int | None = None
    regions: int = 0

    @property
    def dla_share(self) -> float:
        """Share of the nodes on the DLA; NaN where none was asked for."""
        return float("nan") if self.on_dla is None else self.on_dla / self.nodes


def providers_for(
    component: str, precision: str = "fp16", available: Sequence[str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """The execution provider of a component, with its options.

    Engines are not cached: a cached one runs on core 0 whatever ``trt_dla_core`` says (ONNX
    Runtime issue 26680), and only a build says which layers went where.

    Parameters
    ----------
    component
        One of ``COMPONENTS``.
    precision
        ``fp32``, ``fp16`` or ``int8``; a DLA takes the last two.
    available
        Providers that there are; by default those of this ONNX Runtime.

    Raises
    ------
    ValueError
        For an unknown component, or a precision that it does not take.
    FallbackError
        If no provider for it is there.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component {component!r}: expected one of {', '.join(COMPONENTS)}")
    there = onnxruntime.get_available_providers() if available is None else available
    if component == "cpu":
        return [(CPU, {})]
    dla = component.removeprefix("dla") if component.startswith("dla") else ""
    if dla and precision == "fp32":
        raise ValueError(f"{component}: precision fp32; a DLA takes fp16 or int8")
    options = {
        "trt_fp16_enable": str(precision != "fp32"),
        "trt_int8_enable": str(precision == "int8"),
    }
    if TENSORRT in there:
        if dla:
            options |= {"trt_dla_enable": "True", "trt_dla_core": dla}
        return [(TENSORRT, options)]
    if component == "gpu" and CUDA in there and precision == "fp32":
        return [(CUDA, {})]  # it runs the model as it was exported
    raise FallbackError(
        f"{component} in {precision} needs {TENSORRT}; this ONNX Runtime has {', '.join(there)}. "
        "Install NVIDIA's onnxruntime-gpu for your JetPack (for a DLA with TensorRT 10.7 or older, "
        "or 11.4.1 and newer)"
    )


def open_on(
    component: str, model: Path, precision: str = "fp16", batch: int = 1
) -> tuple[onnxruntime.InferenceSession, Placement]:
    """A session on a component, and where its nodes really run.

    Parameters
    ----------
    component, precision
        As for ``providers_for``.
    model
        An exported encoder; its free batch dimension is fixed, as TensorRT wants it.
    batch
        Items of a call.

    Raises
    ------
    FallbackError
        If ONNX Runtime would run it elsewhere, or TensorRT put no layer on the DLA asked for.
    """
    wanted = providers_for(component, precision)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0  # else neither says where anything went
    options.add_free_dimension_override_by_name(BATCH, batch)
    # Optimised nodes lose their names, by which TensorRT speaks of them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _stderr_to_file() as log:
        session = onnxruntime.InferenceSession(str(model), options, providers=wanted)
        log.seek(0)
        told = log.read().decode(errors="replace")
    if session.get_providers()[0] != wanted[0][0]:
        raise FallbackError(f"{component}: asked for {wanted[0][0]}, got {session.get_providers()}")
    names = [node.name for node in onnx.load(model, load_external_data=False).graph.node]
    placement = read_placement(told, wanted[0][0], names, dla=component.startswith("dla"))
    if placement.on_dla == 0:
        raise FallbackError(f"{component}: TensorRT put none of {len(names)} layers on the DLA")
    return session, placement


def read_placement(
    told: str, provider: str, names: Collection[str], dla: bool = False
) -> Placement:
    """What the logs say of where the nodes went.

    TensorRT lists what it runs on the DLA as regions, whose inside it does not show. It does name
    every layer that it takes off the DLA; all others of the model stayed there. Layers that it
    adds itself, to convert formats, are not counted.

    Parameters
    ----------
    told
        Log of ONNX Runtime and TensorRT while the session was opened.
    provider
        That was asked for.
    names
        Of the model's nodes.
    dla
        Whether a DLA was asked for.
    """
    if not dla:
        return Placement(provider, len(names))
    regions = len(_REGION.findall(told))
    switched = {match["name"] for pattern in _SWITCHED for match in pattern.finditer(told)}
    left = sum(count for name, count in placed(told).items() if name != provider)
    off = len(switched & set(names)) + left
    return Placement(provider, len(names), max(0, len(names) - off) if regions else 0, regions)


def placed(told: str) -> Mapping[str, int]:
    """Nodes by provider, as ONNX Runtime logs them; a compiled part of a model is one node."""
    return {match["provider"]: int(match["count"]) for match in _PLACED.finditer(told)}


@contextmanager
def _stderr_to_file() -> Iterator[IO[bytes]]:
    """Send what libraries write to standard error, below Python, into a file."""
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


def open_encoder(
    encoder: str,
    component: str,
    precision: str,
    threads: int,
    batch: int,
    seed: int,
    cache: str,
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call of the encoder on random input, and where ONNX Runtime really placed it.

    Parameters
    ----------
    encoder
        As for ``encoder_spec``.
    component
        ``cpu``, ``gpu``, ``dla0`` or ``dla1``.
    precision
        ``fp32``, ``fp16`` or ``int8``; on the CPU ``fp32`` or ``int8``.
    threads
        On the CPU; ignored elsewhere.
    batch
        Items of a call.
    seed
        Of random weights.
    cache
        Folder of exported encoders.

    Returns
    -------
    The call, and ``provider`` and ``dla_share`` (NaN where no DLA was asked for).

    Raises
    ------
    FallbackError
        If the component cannot be had.
    """
    inputs = example_input(encoder, batch, np.random.default_rng(0))
    if component == "cpu":
        session, facts = _on_cpu(encoder, precision, threads, seed, cache)
    else:
        session, facts = _on_accelerator(encoder, component, precision, batch, seed, cache)

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 3  # the session itself may have been opened to tell everything

    def call() -> Any:
        return session.run(None, {INPUT: inputs}, quiet)

    call()  # the first call allocates; it is never measured
    return call, facts


@cache
def _on_cpu(
    encoder: str, precision: str, threads: int, seed: int, cache: str
) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """One session for all batch sizes, since the exported batch is free."""
    session = open_session(encoder, precision, threads, seed, Path(cache))
    return session, {"provider": session.get_providers()[0]}


def _on_accelerator(
    encoder: str, component: str, precision: str, batch: int, seed: int, cache: str
) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """TensorRT wants a fixed batch, and lowers the precision itself."""
    model = export_encoder(encoder, "fp32", seed, Path(cache))
    session, placement = open_on(component, model, precision=precision, batch=batch)
    return session, {"provider": placement.provider, "dla_share": placement.dla_share}
