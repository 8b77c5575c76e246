"""Types that features may have on the wire."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm_sched.pipeline.requests import WIRE_TYPES

_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCALE_BYTES = 4  # of each row in int8


def quantised(features: Tensor, wire: str) -> dict[str, Tensor]:
    """Features as they travel: under ``""``, and for int8 the scale of each row under ``.scale``.

    Raises
    ------
    ValueError
        For an unknown type, or values that float16 cannot hold.

    Examples
    --------
    >>> sent = quantised(torch.tensor([[1.0, -2.0]]), "int8")
    >>> sent[""].tolist(), round(float(sent[".scale"]), 4)
    ([[64, -127]], 0.0157)
    """
    if wire == "int8":
        rows = features.float()
        scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        return {"": (rows / scale).round().clamp(-127, 127).to(torch.int8), ".scale": scale}
    if wire not in _FLOATS:
        raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRE_TYPES)}")
    sent = features.to(_FLOATS[wire]).contiguous()
    if features.isfinite().all() and not sent.isfinite().all():
        raise ValueError("features beyond what float16 holds: send them as bfloat16 or int8")
    return {"": sent}


def dequantised(sent: Tensor, scale: Tensor | None = None) -> Tensor:
    """Features in float32, from what was sent."""
    return sent.float() if scale is None else sent.float() * scale.float()


def wire_bytes(rows: int, width: int, wire: str) -> int:
    """Bytes of the features of an item, without the header.

    Examples
    --------
    >>> wire_bytes(576, 4096, "float16")
    4718592
    >>> wire_bytes(576, 1024, "int8")
    592128
    """
    if wire == "int8":
        return rows * (width + SCALE_BYTES)
    if wire not in _FLOATS:
        raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRE_TYPES)}")
    return rows * width * _FLOATS[wire].itemsize
