"""Encoders by name: real architectures with seeded random weights, or a real checkpoint.

Random weights cost what trained ones cost: latency and energy do not depend on their values.
What the features mean does; name a checkpoint (``hf:PATH_OR_HUB_ID``) where that matters.
``models.py`` builds what is described here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHECKPOINT = "hf:"

# Mean and standard deviation of the pixels CLIP was trained on (0 to 1, RGB).
PIXEL_MEAN = np.array([0.4815, 0.4578, 0.4082], dtype=np.float32)[:, None, None]
PIXEL_SD = np.array([0.2686, 0.2613, 0.2758], dtype=np.float32)[:, None, None]


@dataclass(frozen=True)
class Family:
    """A kind of encoder: its classes in ``transformers``, and how its input is shaped."""

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
    """An encoder by name.

    Attributes
    ----------
    name
        As it stands in a ``Task``.
    modality
        ``image``, ``audio`` or ``video``.
    family
        A key of ``FAMILIES``.
    input_shape
        Shape of one item, without the batch.
    settings
        Where its configuration differs from the defaults of its family.
    """

    name: str
    modality: str
    family: str
    input_shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


def _vision(hidden: int, layers: int, heads: int, image: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


def _audio(width: int, layers: int, heads: int, frames: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": 80,
        "max_source_positions": frames // 2,
    }


_SPECS = (
    # The vision tower of LLaVA-1.5, which reads the layer before the last.
    EncoderSpec("clip-vit-l14-336", "image", "clip", (3, 336, 336), _vision(1024, 24, 16, 336, 14)),
    EncoderSpec("clip-vit-b32", "image", "clip", (3, 224, 224), _vision(768, 12, 12, 224, 32)),
    EncoderSpec("whisper-small", "audio", "whisper", (80, 3000), _audio(768, 12, 12, 3000)),
    EncoderSpec(
        "videomae-base",
        "video",
        "videomae",
        (16, 3, 224, 224),
        {**_vision(768, 12, 12, 224, 16), "num_frames": 16},
    ),
    EncoderSpec("resnet-50", "image", "resnet", (3, 224, 224)),
    EncoderSpec("tiny-clip", "image", "clip", (3, 32, 32), _vision(32, 2, 2, 32, 8)),
    EncoderSpec("tiny-whisper", "audio", "whisper", (80, 100), _audio(32, 2, 2, 100)),
    EncoderSpec(
        "tiny-videomae",
        "video",
        "videomae",
        (4, 3, 32, 32),
        {**_vision(32, 2, 2, 32, 16), "num_frames": 4},
    ),
    EncoderSpec(
        "tiny-resnet",
        "image",
        "resnet",
        (3, 32, 32),
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    ),
)
ENCODERS: Mapping[str, EncoderSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def encoder_spec(name: str) -> EncoderSpec:
    """The encoder of that name.

    Parameters
    ----------
    name
        A key of ``ENCODERS``, or ``hf:`` and a local folder or hub id of a checkpoint.

    Raises
    ------
    ValueError
        For an unknown name, or a checkpoint of another kind; the known ones are listed.

    Examples
    --------
    >>> encoder_spec("clip-vit-b32").input_shape
    (3, 224, 224)
    """
    if name.startswith(CHECKPOINT):
        return _checkpoint_spec(name)
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ValueError(
            f"encoder {name!r}: expected one of {known}, or hf:PATH_OR_HUB_ID for a checkpoint"
        )
    return ENCODERS[name]


def example_input(name: str, batch: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A batch of random input in the range that the encoder was made for.

    Parameters
    ----------
    name
        As for ``encoder_spec``.
    batch
        Items, at least 1.
    rng
        Draws them.

    Returns
    -------
    float32 of shape ``(batch, *input_shape)``. Images and video frames are uniform pixels,
    normalised per channel; audio is uniform within [-1, 1], where Whisper's log-mel lies.

    Examples
    --------
    >>> example_input("whisper-small", 2, np.random.default_rng(0)).shape
    (2, 80, 3000)
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1 item")
    spec = encoder_spec(name)
    values = rng.random((batch, *spec.input_shape), dtype=np.float32)
    return 2 * values - 1 if spec.modality == "audio" else (values - PIXEL_MEAN) / PIXEL_SD


def checkpoint_family(source: str) -> tuple[str, Any]:
    """Family and encoder configuration of a checkpoint.

    Raises ValueError, which lists the known families, for a checkpoint of another kind.
    """
    from transformers import AutoConfig  # seconds to import; only checkpoints need it

    config = AutoConfig.from_pretrained(source)
    config = getattr(config, "vision_config", config)  # CLIP with both its towers
    family = config.model_type.removesuffix("_vision_model")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"checkpoint {source}: a {config.model_type}; expected one of {known}")
    return family, config


def _checkpoint_spec(name: str) -> EncoderSpec:
    family, config = checkpoint_family(name.removeprefix(CHECKPOINT))
    kind = FAMILIES[family]
    return EncoderSpec(name, kind.modality, family, kind.shape(config), config.to_dict())
