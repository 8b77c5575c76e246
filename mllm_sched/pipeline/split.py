"""Takes a multimodal model apart, between its encoders and its LLM."""

from __future__ import annotations

import hashlib
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from mllm_sched.pipeline.architecture import Architecture
from mllm_sched.pipeline.architectures import architecture_of
from mllm_sched.pipeline.halves import EncoderHalf, LanguageHalf, with_part


def split(model: Any, identity: str = "", source: str = "") -> tuple[EncoderHalf, LanguageHalf]:
    """Both halves of a model. They share its weights; the model itself stays whole.

    Parameters
    ----------
    model
        A Hugging Face model of a supported architecture.
    identity
        Of its weights; drawn from the weights themselves by default.
    source
        Folder or hub id with the input processors; by default they follow the configuration.

    Raises
    ------
    UnsupportedError
        For a model of another kind; the message lists the supported ones.
    """
    architecture = architecture_of(model.config)
    identity = identity or _weights_identity(model)
    projectors = {
        modality: attrgetter(path)(model) for modality, path in architecture.projectors.items()
    }
    encoders = language = model
    for path in architecture.language:
        encoders = with_part(encoders, path, None)
    for path in set(architecture.projectors.values()):
        encoders = with_part(encoders, path, nn.Identity())
    for path in set(architecture.encoders.values()) | set(architecture.projectors.values()):
        language = with_part(language, path, None)
    processors = {
        modality: _processor(architecture, model.config, modality, source)
        for modality in projectors
    }
    return (
        EncoderHalf(encoders, projectors, identity, processors),
        LanguageHalf(language, projectors, identity),
    )


def _processor(architecture: Architecture, config: Any, modality: str, source: str) -> Any:
    """A checkpoint's own input processor, if it brings one; else one that follows the config."""
    from transformers.utils import cached_file

    processor = architecture.processor(config, modality)
    name = "preprocessor_config.json"
    if source and cached_file(source, name, _raise_exceptions_for_missing_entries=False):
        return type(processor).from_pretrained(source)
    return processor


def _weights_identity(model: Any) -> str:
    """Of weights in memory: their digest."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
