"""The kinds of multimodal model that can be split.

To add one, derive from ``Architecture`` and enter it in ``ARCHITECTURES`` under its ``model_type``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mllm_sched.pipeline.architecture import CHANNELS, Architecture, Inputs, samples_of
from mllm_sched.pipeline.qwen import QwenOmni, QwenVision
from mllm_sched.pipeline.requests import AUDIO_HZ, Item, Layout


class UnsupportedError(ValueError):
    """A model of a kind that cannot be split yet; the message lists those that can."""


class Llava(Architecture):
    """LLaVA-1.5: a CLIP tower, read at an inner layer, and a two-layer projector."""

    encoders: Mapping[str, str] = {"image": "model.vision_tower"}
    projectors: Mapping[str, str] = {"image": "model.multi_modal_projector"}
    exportable = True

    def processor(self, config: Any, modality: str) -> Any:
        from transformers import CLIPImageProcessorPil

        side = config.vision_config.image_size
        return CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def prepare(self, config: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        made = processor(images=[item.data], return_tensors="pt", input_data_format=CHANNELS)
        return {"pixel_values": made["pixel_values"]}, Layout()

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        layers = model.config.vision_feature_layer
        strategy = model.config.vision_feature_select_strategy
        outputs = model.model.get_image_features(
            **inputs, vision_feature_layer=layers, vision_feature_select_strategy=strategy
        )
        return torch.cat(list(outputs.pooler_output))

    def tokens(self, config: Any, modality: str, layout: Layout) -> int:
        _check_empty(layout)
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return int(patches + (config.vision_feature_select_strategy == "full"))

    def encoded_shape(self, config: Any, modality: str, layout: Layout) -> tuple[int, int]:
        layers = config.vision_feature_layer
        depth = 1 if isinstance(layers, int) else len(layers)
        return self.tokens(config, modality, layout), depth * config.vision_config.hidden_size


class Voxtral(Architecture):
    """Voxtral: a Whisper encoder; four of its frames make one token."""

    encoders: Mapping[str, str] = {"audio": "model.audio_tower"}
    projectors: Mapping[str, str] = {"audio": "model.multi_modal_projector"}
    exportable = True

    def processor(self, config: Any, modality: str) -> Any:
        from transformers import WhisperFeatureExtractor

        audio = config.audio_config
        seconds = 2 * audio.max_source_positions // 100  # a spectrum each 10 ms, halved once
        return WhisperFeatureExtractor(feature_size=audio.num_mel_bins, chunk_length=seconds)

    def prepare(self, config: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        window = processor.n_samples
        if len(item.data) > window:
            raise ValueError(f"audio of {len(item.data)} samples: at most {window} fit one item")
        spectrum = processor(samples_of(item), sampling_rate=int(AUDIO_HZ), return_tensors="pt")
        return {"input_features": spectrum["input_features"]}, Layout()

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        features: Tensor = model.model.get_audio_features(**inputs).pooler_output
        return features

    def tokens(self, config: Any, modality: str, layout: Layout) -> int:
        _check_empty(layout)
        audio = config.audio_config
        return int(audio.max_source_positions * audio.hidden_size // audio.intermediate_size)

    def encoded_shape(self, config: Any, modality: str, layout: Layout) -> tuple[int, int]:
        return self.tokens(config, modality, layout), int(config.audio_config.intermediate_size)


def _check_empty(layout: Layout) -> None:
    if layout != Layout():
        raise ValueError(f"{layout}: every item of this model has the same layout; say none")


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llava": Llava(),
        "voxtral": Voxtral(),
        "qwen2_5_vl": QwenVision(),
        "qwen2_5_omni_thinker": QwenOmni(),
    }
)
"""Kinds of model that can be split, by ``model_type`` of their configuration."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model with this configuration.

    Raises
    ------
    UnsupportedError
        For any other kind of model.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in ARCHITECTURES:
        known, base = ", ".join(ARCHITECTURES), f"{Architecture.__module__}.Architecture"
        raise UnsupportedError(
            f"a model of type {kind!r} cannot be split; supported: {known}. To add it, derive a "
            f"class from {base} and enter it in {__name__}.ARCHITECTURES"
        )
    return ARCHITECTURES[kind]
