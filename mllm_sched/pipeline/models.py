"""Builds the encoders of ``encoders.py`` as torch modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from mllm_sched.pipeline.encoders import CHECKPOINT, FAMILIES, checkpoint_family, encoder_spec


class Features(torch.nn.Module):
    """An encoder as a plain function: a batch of inputs to features (batch, tokens, width)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        if hasattr(model, "pooler"):
            model.pooler = torch.nn.Identity()  # what it gives is not used: do not pay for it
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features of every token; a convolutional map is read as one token per place."""
        hidden: torch.Tensor = self.model(inputs).last_hidden_state
        return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def build_encoder(name: str, seed: int = 0) -> Features:
    """The encoder in eval mode. The global random state stays untouched.

    Parameters
    ----------
    name
        As for ``encoder_spec``.
    seed
        Of the random weights. A checkpoint has its own and ignores it.

    Examples
    --------
    >>> build_encoder("tiny-clip")(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 17, 32])
    """
    spec = encoder_spec(name)
    if name.startswith(CHECKPOINT):
        return load_checkpoint(name.removeprefix(CHECKPOINT))
    config = _transformers_class(spec.family, "configuration")(**spec.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _transformers_class(spec.family, "modeling")(config)
    return Features(model).eval()


def load_checkpoint(source: str) -> Features:
    """The encoder half of a trained model, in eval mode; other weights are not kept.

    Parameters
    ----------
    source
        Local folder as ``save_pretrained`` writes it, or a hub id.

    Raises
    ------
    ValueError
        If the checkpoint is of another kind, or lacks weights of the encoder (``transformers``
        itself would fill them with random values and only warn).
    """
    family, config = checkpoint_family(source)
    model, report = _transformers_class(family, "modeling").from_pretrained(
        source,
        config=config,
        # Whisper keeps its encoder beside a decoder.
        key_mapping={r"^(model\.)?encoder\.": ""} if family == "whisper" else None,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"checkpoint {source}: lacks {len(missing)} weights, first {missing[0]!r}")
    return Features(model).eval()


def _transformers_class(family: str, part: str) -> Any:
    kind = FAMILIES[family]
    name = kind.config_class if part == "configuration" else kind.model_class
    return getattr(import_module(f"transformers.models.{family}.{part}_{family}"), name)
