"""Encoders by name: real architectures with seeded random weights, or a real checkpoint.

Random weights cost what trained ones cost: latency and energy do not depend on their values.
What the features mean does; name a checkpoint (``hf:PATH_OR_HUB_ID``) where that matters.
PyTorch and transformers are imported when an encoder is built: devices read the list without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT = "hf:"

# Mean and standard deviation of the pixels CLIP was trained on (0 to 1, RGB).
PIXEL_MEAN = np.array([0.4815, 0.4578, 0.4082], dtype=np.float32)[:, None, None]
PIXEL_SD = np.array([0.2686, 0.2613, 0.2758], dtype=np.float32)[:, None, None]


@dataclass(frozen=True)
class Family:
    """A kind of encoder: its classes in ``transformers``, and the shape of its input."""

    modality: str
    config_class: str
    model_class: str
    shape: Callable[[Any], tuple[int, ...]]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "clip": Family(
            "image",
            "CLIPVisionConfig",
            "CLIPVisionModel",
            lambda config: (3, config.image_size, config.image_size),
        ),
        "whisper": Family(
            "audio",
            "WhisperConfig",
            "WhisperEncoder",
            # The second convolution halves the number of frames.
            lambda config: (config.num_mel_bins, 2 * config.max_source_positions),
        ),
        "videomae": Family(
            "video",
            "VideoMAEConfig",
            "VideoMAEModel",
            lambda config: (config.num_frames, 3, config.image_size, config.image_size),
        ),
        # A convolution takes any size; 224 pixels is what ResNet was trained on.
        "resnet": Family("image", "ResNetConfig", "ResNetModel", lambda config: (3, 224, 224)),
    }
)
"""Kinds of encoder, by the name of their module in ``transformers.models``."""


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder by name; ``settings`` differ from the defaults of its family's configuration."""

    name: str
    family: str
    input_shape: tuple[int, ...]  # of one item, without the batch
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def modality(self) -> str:
        """``image``, ``audio`` or ``video``."""
        return FAMILIES[self.family].modality


def _vision(hidden: int, layers: int, heads: int, image: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


def _video(hidden: int, layers: int, heads: int, image: int, frames: int) -> dict[str, Any]:
    return {**_vision(hidden, layers, heads, image, 16), "num_frames": frames}


def _audio(width: int, layers: int, heads: int, frames: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": 80,
        "max_source_positions": frames // 2,
    }


_TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
_SPECS = (
    # The vision tower of LLaVA-1.5, which reads the layer before the last.
    EncoderSpec("clip-vit-l14-336", "clip", (3, 336, 336), _vision(1024, 24, 16, 336, 14)),
    EncoderSpec("clip-vit-b32", "clip", (3, 224, 224), _vision(768, 12, 12, 224, 32)),
    EncoderSpec("whisper-small", "whisper", (80, 3000), _audio(768, 12, 12, 3000)),
    EncoderSpec("videomae-base", "videomae", (16, 3, 224, 224), _video(768, 12, 12, 224, 16)),
    EncoderSpec("resnet-50", "resnet", (3, 224, 224)),
    EncoderSpec("tiny-clip", "clip", (3, 32, 32), _vision(32, 2, 2, 32, 8)),
    EncoderSpec("tiny-whisper", "whisper", (80, 100), _audio(32, 2, 2, 100)),
    EncoderSpec("tiny-videomae", "videomae", (4, 3, 32, 32), _video(32, 2, 2, 32, 4)),
    EncoderSpec("tiny-resnet", "resnet", (3, 32, 32), _TINY_RESNET),
)
ENCODERS: Mapping[str, EncoderSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def encoder_spec(name: str) -> EncoderSpec:
    """The encoder of that name: a key of ``ENCODERS``, or ``hf:`` and a local folder or hub id.

    Raises ValueError for an unknown name or kind of checkpoint.
    """
    if name.startswith(CHECKPOINT):
        family, config = _checkpoint_family(name.removeprefix(CHECKPOINT))
        return EncoderSpec(name, family, FAMILIES[family].shape(config), config.to_dict())
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ValueError(
            f"encoder {name!r}: expected one of {known}, or hf:PATH_OR_HUB_ID for a checkpoint"
        )
    return ENCODERS[name]


def example_input(name: str, batch: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A batch of random input, float32, of shape (batch, ...) with the input shape of one item.

    Images and video frames are uniform pixels, normalised per channel; audio is uniform within
    [-1, 1], where Whisper's log-mel lies.
    """
    spec = encoder_spec(name)
    values = rng.random((batch, *spec.input_shape), dtype=np.float32)
    return 2 * values - 1 if spec.modality == "audio" else (values - PIXEL_MEAN) / PIXEL_SD


def build_encoder(name: str, seed: int = 0) -> nn.Module:
    """The encoder in eval mode: a batch of inputs to features (batch, tokens, width).

    ``seed`` is that of random weights; the global random state stays untouched. Raises ValueError
    for a checkpoint of another kind, or one that lacks weights of the encoder.
    """
    import torch

    if name.startswith(CHECKPOINT):
        return _features(_load_checkpoint(name.removeprefix(CHECKPOINT)))
    spec = encoder_spec(name)
    kind = FAMILIES[spec.family]
    config = _transformers(spec.family, "configuration", kind.config_class)(**spec.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _features(_transformers(spec.family, "modeling", kind.model_class)(config))


def _features(model: Any) -> nn.Module:
    """The model as a plain function; a convolutional map is read as one token per place."""
    from torch import nn

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if hasattr(model, "pooler"):
                model.pooler = nn.Identity()  # its output is not used: do not pay for it
            self.model = model

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.model(inputs).last_hidden_state
            return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden

    return Features().eval()


def _load_checkpoint(source: str) -> Any:
    family, config = _checkpoint_family(source)
    model, report = _transformers(family, "modeling", FAMILIES[family].model_class).from_pretrained(
        source,
        config=config,
        # Whisper keeps its encoder beside a decoder.
        key_mapping={r"^(model\.)?encoder\.": ""} if family == "whisper" else None,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random values
        raise ValueError(f"checkpoint {source}: lacks {len(missing)} weights, first {missing[0]!r}")
    return model


def _checkpoint_family(source: str) -> tuple[str, Any]:
    from transformers import AutoConfig  # seconds to import; only checkpoints need it

    config = AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)  # CLIP with both its towers
    family = config.model_type.removesuffix("_vision_model")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"checkpoint {source}: a {config.model_type}; expected one of {known}")
    return family, config


def _transformers(family: str, part: str, name: str) -> Any:
    return getattr(import_module(f"transformers.models.{family}.{part}_{family}"), name)
