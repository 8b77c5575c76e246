"""The kinds of multimodal model that can be split, and where.

To add one, derive from ``Architecture`` and enter it in ``ARCHITECTURES`` under its ``model_type``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mllm_sched.pipeline.requests import AUDIO_HZ, Item, Layout

Inputs = dict[str, Tensor]
CHANNELS = "channels_last"  # a processor left to guess takes a picture 3 pixels high for colours


class Architecture(ABC):
    """One kind of model, with a configuration of its own."""

    encoders: Mapping[str, str]  # path of the module, by modality
    projectors: Mapping[str, str]  # the same; one may lie within its encoder
    language: Sequence[str] = ("model.language_model", "lm_head")  # paths of the LLM's modules
    exportable = False  # whether its encoders take one shape, as an ONNX file does

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def processor(self, modality: str) -> Any:
        """Turns raw input into tensors, where a checkpoint does not bring its own."""

    @abstractmethod
    def prepare(self, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        """What the encoder takes, and the layout of what it will give."""

    @abstractmethod
    def encode(self, model: nn.Module, modality: str, inputs: Inputs) -> Tensor:
        """Features (rows, width) before the projector; ``model`` has identities for projectors."""

    def project(self, projector: nn.Module, features: Tensor, layout: Layout) -> Tensor:
        """Features as the LLM takes them: (tokens, hidden size)."""
        projected: Tensor = projector(features)
        return projected

    @abstractmethod
    def tokens(self, modality: str, layout: Layout) -> int:
        """Placeholders that an item takes; ValueError if its layout is none."""

    @abstractmethod
    def encoded_shape(self, modality: str, layout: Layout) -> tuple[int, int]:
        """Rows and width of the features before the projector."""

    def placeholder(self, modality: str) -> int:
        """The token in whose place features go."""
        return int(getattr(self.config, f"{modality}_token_id"))

    def brackets(self, modality: str) -> tuple[int, int] | None:
        """Tokens that must stand before and after an item, if any must."""
        return None

    def positions(self, model: Any, ids: Tensor, layouts: Sequence[tuple[str, Layout]]) -> Tensor:
        """Position of every token: (1, tokens), or (3, 1, tokens) in time, height and width."""
        return torch.arange(ids.shape[1])[None]


def samples_of(item: Item) -> np.ndarray:
    """Samples of an audio item in float32, between -1 and 1."""
    return item.data.astype(np.float32) / 32768


class QwenVision(Architecture):
    """Qwen2.5-VL: any size of image and video, in a grid of patches, four to a token."""

    encoders: Mapping[str, str] = {"image": "model.visual", "video": "model.visual"}
    projectors: Mapping[str, str] = {"image": "model.visual.merger", "video": "model.visual.merger"}

    def processor(self, modality: str) -> Any:
        from transformers import Qwen2VLImageProcessorPil

        vision = self.config.vision_config
        return Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )

    def prepare(self, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        if item.modality == "image":
            made = processor(images=[item.data], return_tensors="pt", input_data_format=CHANNELS)
            (grid,) = made["image_grid_thw"].tolist()
            return {"pixel_values": made["pixel_values"]}, Layout(grid=tuple(grid))
        return self._prepare_video(self.config.vision_config, processor, item)

    def _prepare_video(self, vision: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        """Frames as the image processor lays them, joined in time; an odd last one is doubled."""
        steps = vision.temporal_patch_size
        pictures = list(item.data)
        made = processor(images=pictures, return_tensors="pt", input_data_format=CHANNELS)
        _, height, width = made["image_grid_thw"][0].tolist()
        patch = vision.patch_size
        frames = made["pixel_values"].view(len(item.data), height * width, -1, steps, patch, patch)
        frames = frames[:, :, :, 0]  # of an image, every step in time is the same
        if missing := -len(frames) % steps:
            frames = torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])])
        time = len(frames) // steps
        pixels = frames.unflatten(0, (time, steps)).movedim(1, 3).reshape(time * height * width, -1)
        layout = Layout((time, height, width), seconds_per_grid=steps / item.rate_hz)
        return {"pixel_values_videos": pixels}, layout

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        pixels = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
        visual = model.model.visual
        features: Tensor = visual(pixels.type(visual.dtype), inputs["grid"]).last_hidden_state
        return features

    def project(self, projector: nn.Module, features: Tensor, layout: Layout) -> Tensor:
        """Merge patches, and put the tokens back in reading order."""
        projected: Tensor = projector(features)
        return projected[self.reading_order(layout)]

    def reading_order(self, layout: Layout) -> Tensor:
        """Where the encoder, which goes window by window, has each token of a picture."""
        from transformers.vision_utils import get_vision_window_index

        vision = self.config.vision_config
        order, _ = get_vision_window_index(
            torch.tensor([layout.grid]),
            vision.spatial_merge_size,
            vision.window_size,
            vision.patch_size,
        )
        return torch.argsort(order)

    def tokens(self, modality: str, layout: Layout) -> int:
        merge = self.config.vision_config.spatial_merge_size
        time, height, width = _checked_grid(layout.grid, merge)
        if layout.mel_frames is not None:
            raise ValueError(f"mel_frames={layout.mel_frames}: a picture has none")
        if modality == "image" and time != 1:
            raise ValueError(f"grid={layout.grid}: an image has one step in time")
        return time * height * width // merge**2

    def encoded_shape(self, modality: str, layout: Layout) -> tuple[int, int]:
        vision = self.config.vision_config
        patches = self.tokens(modality, layout) * vision.spatial_merge_size**2
        return patches, int(vision.hidden_size)

    def brackets(self, modality: str) -> tuple[int, int] | None:
        return self.config.vision_start_token_id, self.config.vision_end_token_id

    def positions(self, model: Any, ids: Tensor, layouts: Sequence[tuple[str, Layout]]) -> Tensor:
        kinds = torch.zeros_like(ids)
        for kind, modality in enumerate(("image", "video"), start=1):
            kinds[ids == self.placeholder(modality)] = kind
        positions, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=kinds,
            image_grid_thw=_grids(layouts, "image"),
            video_grid_thw=_grids(layouts, "video"),
            second_per_grid_ts=_seconds(layouts),
        )
        return positions


class QwenOmni(QwenVision):
    """Qwen2.5-Omni's thinker: the vision of Qwen2.5-VL, and audio at 25 tokens a second."""

    encoders: Mapping[str, str] = {**QwenVision.encoders, "audio": "model.audio_tower"}
    projectors: Mapping[str, str] = {**QwenVision.projectors, "audio": "model.audio_tower.proj"}

    def processor(self, modality: str) -> Any:
        if modality != "audio":
            return super().processor(modality)
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.config.audio_config.num_mel_bins)

    def prepare(self, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        if item.modality != "audio":
            return super().prepare(processor, item)
        made = processor(
            samples_of(item),
            sampling_rate=int(AUDIO_HZ),
            padding=True,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = made["attention_mask"]
        inputs = {"input_features": made["input_features"], "feature_attention_mask": mask}
        return inputs, Layout(mel_frames=int(mask.sum()))

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        if modality != "audio":
            return super().encode(model, modality, inputs)
        features: Tensor = model.model.get_audio_features(**inputs).last_hidden_state
        return features

    def project(self, projector: nn.Module, features: Tensor, layout: Layout) -> Tensor:
        if layout.grid is not None:
            return super().project(projector, features, layout)
        projected: Tensor = projector(features)
        return projected

    def tokens(self, modality: str, layout: Layout) -> int:
        if modality != "audio":
            return super().tokens(modality, layout)
        frames = layout.mel_frames
        if frames is None or frames < 4 or layout.grid is not None:
            raise ValueError(f"mel_frames={frames}: expected 4 frames at least, and no grid")
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1

    def encoded_shape(self, modality: str, layout: Layout) -> tuple[int, int]:
        if modality != "audio":
            return super().encoded_shape(modality, layout)
        return self.tokens(modality, layout), int(self.config.audio_config.d_model)

    def brackets(self, modality: str) -> tuple[int, int] | None:
        if modality != "audio":
            return super().brackets(modality)
        return self.config.audio_start_token_id, self.config.audio_end_token_id

    def positions(self, model: Any, ids: Tensor, layouts: Sequence[tuple[str, Layout]]) -> Tensor:
        frames = [layout.mel_frames for kind, layout in layouts if kind == "audio"]
        positions, _ = model.get_rope_index(
            ids,
            _grids(layouts, "image"),
            _grids(layouts, "video"),
            torch.ones_like(ids),
            False,
            torch.tensor(frames) if frames else None,
            _seconds(layouts),
        )
        return positions


def _grids(layouts: Sequence[tuple[str, Layout]], modality: str) -> Tensor | None:
    grids = [layout.grid for kind, layout in layouts if kind == modality]
    return torch.tensor(grids) if grids else None


def _seconds(layouts: Sequence[tuple[str, Layout]]) -> Tensor | None:
    seconds = [layout.seconds_per_grid for kind, layout in layouts if kind == "video"]
    return torch.tensor(seconds) if seconds else None


def _checked_grid(grid: tuple[int, int, int] | None, merge: int) -> tuple[int, int, int]:
    if grid is None or len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
        raise ValueError(
            f"grid={grid}: expected time, height and width above 0, the last two multiples of "
            f"{merge}"
        )
    if math.prod(grid) > 1 << 20:
        raise ValueError(f"grid={grid}: more than {1 << 20} patches")
    return grid


class UnsupportedError(ValueError):
    """A model of a kind that cannot be split."""


class Llava(Architecture):
    """LLaVA-1.5: a CLIP tower, read at an inner layer, and a two-layer projector."""

    encoders: Mapping[str, str] = {"image": "model.vision_tower"}
    projectors: Mapping[str, str] = {"image": "model.multi_modal_projector"}
    exportable = True

    def processor(self, modality: str) -> Any:
        from transformers import CLIPImageProcessorPil

        side = self.config.vision_config.image_size
        return CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def prepare(self, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        made = processor(images=[item.data], return_tensors="pt", input_data_format=CHANNELS)
        return {"pixel_values": made["pixel_values"]}, Layout()

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        layers = self.config.vision_feature_layer
        strategy = self.config.vision_feature_select_strategy
        outputs = model.model.get_image_features(
            **inputs, vision_feature_layer=layers, vision_feature_select_strategy=strategy
        )
        return torch.cat(list(outputs.pooler_output))

    def tokens(self, modality: str, layout: Layout) -> int:
        _check_empty(layout)
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return int(patches + (self.config.vision_feature_select_strategy == "full"))

    def encoded_shape(self, modality: str, layout: Layout) -> tuple[int, int]:
        layers = self.config.vision_feature_layer
        depth = 1 if isinstance(layers, int) else len(layers)
        return self.tokens(modality, layout), depth * self.config.vision_config.hidden_size


class Voxtral(Architecture):
    """Voxtral: a Whisper encoder; four of its frames make one token."""

    encoders: Mapping[str, str] = {"audio": "model.audio_tower"}
    projectors: Mapping[str, str] = {"audio": "model.multi_modal_projector"}
    exportable = True

    def processor(self, modality: str) -> Any:
        from transformers import WhisperFeatureExtractor

        audio = self.config.audio_config
        seconds = 2 * audio.max_source_positions // 100  # a spectrum each 10 ms, halved once
        return WhisperFeatureExtractor(feature_size=audio.num_mel_bins, chunk_length=seconds)

    def prepare(self, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        window = processor.n_samples
        if len(item.data) > window:
            raise ValueError(f"audio of {len(item.data)} samples: at most {window} fit one item")
        spectrum = processor(samples_of(item), sampling_rate=int(AUDIO_HZ), return_tensors="pt")
        return {"input_features": spectrum["input_features"]}, Layout()

    def encode(self, model: Any, modality: str, inputs: Inputs) -> Tensor:
        features: Tensor = model.model.get_audio_features(**inputs).pooler_output
        return features

    def tokens(self, modality: str, layout: Layout) -> int:
        _check_empty(layout)
        audio = self.config.audio_config
        return int(audio.max_source_positions * audio.hidden_size // audio.intermediate_size)

    def encoded_shape(self, modality: str, layout: Layout) -> tuple[int, int]:
        return self.tokens(modality, layout), int(self.config.audio_config.intermediate_size)


def _check_empty(layout: Layout) -> None:
    if layout != Layout():
        raise ValueError(f"{layout}: every item of this model has the same layout; say none")


ARCHITECTURES: Mapping[str, type[Architecture]] = MappingProxyType(
    {
        "llava": Llava,
        "voxtral": Voxtral,
        "qwen2_5_vl": QwenVision,
        "qwen2_5_omni_thinker": QwenOmni,
    }
)
"""Kinds of model that can be split, by ``model_type`` of their configuration."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model with this configuration; UnsupportedError if there is none."""
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in ARCHITECTURES:
        known, base = ", ".join(ARCHITECTURES), f"{Architecture.__module__}.Architecture"
        raise UnsupportedError(
            f"a model of type {kind!r} cannot be split; supported: {known}. To add it, derive a "
            f"class from {base} and enter it in {__name__}.ARCHITECTURES"
        )
    return ARCHITECTURES[kind](config)
