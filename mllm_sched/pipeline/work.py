"""Work of an encoder, whatever runs it: FLOPs, bytes moved, operators launched.

``data/encoders/count_work.py`` writes the table beside it. Reading it needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import MappingProxyType

import pandas as pd

from mllm_sched import paths

WORK_TABLE = paths.DATA / "encoders" / "work.csv"
BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Work:
    """Cost of one pass through a network in FP32; ``dla_`` is the part placed on a DLA core."""

    flops: float  # convolutions, linear layers and attention; a multiply-add counts as two
    bytes: float  # inputs, parameters and output of every operator, none fused
    kernels: int  # operators that launch something; views are free
    parameters: int  # trained numbers that the pass reads
    dla_flops: float = 0
    dla_bytes: float = 0
    dla_kernels: int = 0
    dla_parameters: int = 0
    dla_segments: int = 0  # contiguous runs of operators on the DLA, at most 16

    def scaled(self, factor: float) -> Work:
        """The work of ``factor`` times as much input in one pass.

        FLOPs and activations grow; parameters are read once, and operators launched once.
        """
        return replace(
            self,
            flops=self.flops * factor,
            bytes=_scaled_bytes(self.bytes, self.parameters, factor),
            dla_flops=self.dla_flops * factor,
            dla_bytes=_scaled_bytes(self.dla_bytes, self.dla_parameters, factor),
        )

    def without_dla(self) -> Work:
        """Without the DLA's part."""
        return Work(
            flops=self.flops - self.dla_flops,
            bytes=self.bytes - self.dla_bytes,
            kernels=self.kernels - self.dla_kernels,
            parameters=self.parameters - self.dla_parameters,
        )


def _scaled_bytes(total: float, parameters: int, factor: float) -> float:
    weights = BYTES_PER_PARAMETER * parameters
    return (total - weights) * factor + weights


@lru_cache(maxsize=1)
def work_table() -> pd.DataFrame:
    """The committed table, one row a network.

    Columns: ``encoder``, ``kind`` (``encoder``, or ``reference`` for the networks of published
    measurements), ``modality``, ``input_shape`` (with a batch of 1), and the fields of ``Work``.
    """
    return pd.read_csv(WORK_TABLE, dtype={"modality": str}, keep_default_na=False)


@lru_cache(maxsize=1)
def read_work() -> Mapping[str, Work]:
    """Work of every network in the table, by name, one item at full size."""
    columns = [field.name for field in fields(Work)]
    return MappingProxyType(
        {
            str(row["encoder"]): Work(**{name: int(row[name]) for name in columns})
            for row in work_table().to_dict("records")
        }
    )


@lru_cache(maxsize=1)
def encoder_modalities() -> Mapping[str, str]:
    """Modality of every encoder in the table, by name; reference networks are left out."""
    table = work_table().query("kind == 'encoder'")
    return MappingProxyType(dict(zip(table["encoder"], table["modality"], strict=True)))
