"""Where Qwen's multimodal models come apart: Qwen2.5-VL, and the thinker of Qwen2.5-Omni."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm_sched.pipeline.architecture import CHANNELS, Architecture, Inputs, samples_of
from mllm_sched.pipeline.requests import AUDIO_HZ, Item, Layout


class QwenVision(Architecture):
    """Qwen2.5-VL: any size of image and video, in a grid of patches, four to a token."""

    encoders: Mapping[str, str] = {"image": "model.visual", "video": "model.visual"}
    projectors: Mapping[str, str] = {"image": "model.visual.merger", "video": "model.visual.merger"}

    def processor(self, config: Any, modality: str) -> Any:
        from transformers import Qwen2VLImageProcessorPil

        vision = config.vision_config
        return Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )

    def prepare(self, config: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        if item.modality == "image":
            made = processor(images=[item.data], return_tensors="pt", input_data_format=CHANNELS)
            (grid,) = made["image_grid_thw"].tolist()
            return {"pixel_values": made["pixel_values"]}, Layout(grid=tuple(grid))
        return self._prepare_video(config.vision_config, processor, item)

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

    def project(
        self, projector: nn.Module, config: Any, features: Tensor, layout: Layout
    ) -> Tensor:
        """Merge patches, and put the tokens back in reading order."""
        projected: Tensor = projector(features)
        return projected[self.reading_order(config, layout)]

    def reading_order(self, config: Any, layout: Layout) -> Tensor:
        """Where the encoder, which goes window by window, has each token of a picture."""
        from transformers.vision_utils import get_vision_window_index

        vision = config.vision_config
        order, _ = get_vision_window_index(
            torch.tensor([layout.grid]),
            vision.spatial_merge_size,
            vision.window_size,
            vision.patch_size,
        )
        return torch.argsort(order)

    def tokens(self, config: Any, modality: str, layout: Layout) -> int:
        merge = config.vision_config.spatial_merge_size
        time, height, width = _checked_grid(layout.grid, merge)
        if layout.mel_frames is not None:
            raise ValueError(f"mel_frames={layout.mel_frames}: a picture has none")
        if modality == "image" and time != 1:
            raise ValueError(f"grid={layout.grid}: an image has one step in time")
        return time * height * width // merge**2

    def encoded_shape(self, config: Any, modality: str, layout: Layout) -> tuple[int, int]:
        vision = config.vision_config
        patches = self.tokens(config, modality, layout) * vision.spatial_merge_size**2
        return patches, int(vision.hidden_size)

    def brackets(self, config: Any, modality: str) -> tuple[int, int] | None:
        return config.vision_start_token_id, config.vision_end_token_id

    def positions(self, model: Any, ids: Tensor, layouts: Sequence[tuple[str, Layout]]) -> Tensor:
        kinds = torch.zeros_like(ids)
        for kind, modality in enumerate(("image", "video"), start=1):
            kinds[ids == self.placeholder(model.config, modality)] = kind
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

    def processor(self, config: Any, modality: str) -> Any:
        if modality != "audio":
            return super().processor(config, modality)
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins)

    def prepare(self, config: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        if item.modality != "audio":
            return super().prepare(config, processor, item)
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

    def project(
        self, projector: nn.Module, config: Any, features: Tensor, layout: Layout
    ) -> Tensor:
        if layout.grid is not None:
            return super().project(projector, config, features, layout)
        projected: Tensor = projector(features)
        return projected

    def tokens(self, config: Any, modality: str, layout: Layout) -> int:
        if modality != "audio":
            return super().tokens(config, modality, layout)
        frames = layout.mel_frames
        if frames is None or frames < 4 or layout.grid is not None:
            raise ValueError(f"mel_frames={frames}: expected 4 frames at least, and no grid")
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1

    def encoded_shape(self, config: Any, modality: str, layout: Layout) -> tuple[int, int]:
        if modality != "audio":
            return super().encoded_shape(config, modality, layout)
        return self.tokens(config, modality, layout), int(config.audio_config.d_model)

    def brackets(self, config: Any, modality: str) -> tuple[int, int] | None:
        if modality != "audio":
            return super().brackets(config, modality)
        return config.audio_start_token_id, config.audio_end_token_id

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
