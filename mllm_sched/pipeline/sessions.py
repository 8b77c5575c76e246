"""An encoder by name, open on a component and ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mllm_sched.pipeline.encoders import example_input
from mllm_sched.pipeline.export import INPUT, export_encoder, open_session


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
    from mllm_sched.pipeline.providers import open_on

    model = export_encoder(encoder, "fp32", seed, Path(cache))
    session, placement = open_on(component, model, precision=precision, batch=batch)
    return session, {"provider": placement.provider, "dla_share": placement.dla_share}
