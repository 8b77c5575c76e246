"""Counts every known network, and writes the table that ``work.py`` reads.

``python -m mllm_sched.pipeline.work_table`` rewrites ``data/encoders/work.csv``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from mllm_sched.paths import need_checkout
from mllm_sched.pipeline.counting import count_work
from mllm_sched.pipeline.encoders import ENCODERS, encoder_spec
from mllm_sched.pipeline.models import build_encoder
from mllm_sched.pipeline.reference_networks import REFERENCES, build_reference
from mllm_sched.pipeline.work import WORK_TABLE, Work


def encoder_work(name: str, batch: int = 1) -> Work:
    """Work of a registered encoder at full size; no weights are made."""
    with torch.device("meta"):
        model = build_encoder(name).to("meta")
        return count_work(model, torch.empty(batch, *encoder_spec(name).input_shape))


def reference_work(name: str) -> Work:
    """Work of a network of the published measurements, at the input it was measured with."""
    with torch.device("meta"):
        return count_work(build_reference(name), torch.empty(REFERENCES[name].input_shape))


def count_table() -> pd.DataFrame:
    """Work of the full-size encoders and the reference networks; columns as in ``work_table``."""
    rows = [
        _row(name, "encoder", spec.modality, (1, *spec.input_shape), encoder_work(name))
        for name, spec in ENCODERS.items()
        if not name.startswith("tiny-")
    ]
    rows += [
        _row(name, "reference", "image", network.input_shape, reference_work(name))
        for name, network in REFERENCES.items()
    ]
    return pd.DataFrame(rows)


def write_work_table(path: Path = WORK_TABLE) -> Path:
    """Count everything and write the table; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count_table().to_csv(path, index=False)
    return path


def _row(
    name: str, kind: str, modality: str, shape: tuple[int, ...], work: Work
) -> dict[str, object]:
    size = "x".join(str(side) for side in shape)
    return {
        "encoder": name,
        "kind": kind,
        "modality": modality,
        "input_shape": size,
        **asdict(work),
    }


if __name__ == "__main__":
    need_checkout()
    print(write_work_table().read_text())
