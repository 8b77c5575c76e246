"""Small multimodal models of every supported architecture, with seeded random weights.

Their answers are meaningless; they show whether a request answered in two halves gives the same
numbers as in one. Their tokens are bytes, then markers. ``llava-clip-b32`` has an encoder of real
size before a small LLM, so that encoding dominates the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from mllm_sched.pipeline.encoders import ENCODERS

PAD, BEGIN, END = 256, 257, 258
IMAGE, AUDIO, VIDEO = 260, 261, 262
VISION_START, VISION_END, AUDIO_START, AUDIO_END = 263, 264, 265, 266
VOCABULARY = 320
# With weights as initialised, tiny models hardly react to their input; larger weights do.
AMPLIFIED = 4.0


def _text(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }


def _rope_text(width: int, layers: int) -> dict[str, Any]:
    eighth = width // 4 // 8  # of a head; its half is shared out 2 : 3 : 3
    sections = [eighth, (3 * eighth) // 2, (3 * eighth + 1) // 2]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return {**_text(width, layers), "rope_parameters": rope}


def _clip(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers + 1,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 32,
    }


def _llava(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": "llama", **text},
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
    )


def _voxtral(width: int, layers: int) -> Any:
    from transformers import VoxtralConfig

    audio = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    }
    text = {"model_type": "llama", "head_dim": width // 2, **_text(2 * width, layers)}
    return VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=AUDIO)


def _vision(width: int, layers: int) -> dict[str, Any]:
    return {
        "depth": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 2 * width,
        "fullatt_block_indexes": [layers - 1],
        "window_size": 56,
    }


def _qwen_vision(width: int, layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config=_rope_text(2 * width, layers),
        vision_config={**_vision(width, layers), "tokens_per_second": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def _qwen_omni(width: int, layers: int) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    audio = {
        "d_model": width,
        "encoder_layers": layers,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * width,
        "num_mel_bins": 16,
        "max_source_positions": 1500,
        "n_window": 50,
        "output_dim": 2 * width,
    }
    kinds = {"image": IMAGE, "audio": AUDIO, "video": VIDEO}
    markers: dict[str, Any] = {
        **{f"{kind}_token_id": token for kind, token in kinds.items()},
        **{f"{kind}_token_index": token for kind, token in kinds.items()},
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "audio_start_token_id": AUDIO_START,
        "audio_end_token_id": AUDIO_END,
    }
    return Qwen2_5OmniThinkerConfig(
        audio_config=audio,
        vision_config=_vision(width, layers),
        text_config=_rope_text(2 * width, layers),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        **markers,
    )


# Name to configuration, mostly by width of the encoder and layers of each half.
SMALL_MODELS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "small-llava": lambda: _llava(_clip(64, 3), _text(128, 3)),
        "llava-clip-b32": lambda: _llava(
            {**ENCODERS["clip-vit-b32"].settings, "projection_dim": 512}, _text(128, 3)
        ),
        "small-voxtral": lambda: _voxtral(32, 3),
        "small-qwen2.5-vl": lambda: _qwen_vision(64, 3),
        "small-qwen2.5-omni": lambda: _qwen_omni(64, 3),
        "medium-qwen2.5-omni": lambda: _qwen_omni(256, 8),
    }
)


def small_config(name: str) -> Any:
    """Configuration of a small model; ValueError lists the known names."""
    if name not in SMALL_MODELS:
        raise ValueError(
            f"model {name!r}: expected one of {', '.join(SMALL_MODELS)}, or hf:PATH_OR_HUB_ID"
        )
    return SMALL_MODELS[name]()


def build(config: Any) -> Any:
    """A model of random weights for a configuration that names no class of its own."""
    import transformers

    kind = type(config).__name__.removesuffix("Config")
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def small_model(name: str, seed: int = 0) -> Any:
    """The whole model in float32 and eval mode. The global random state stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(small_config(name))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(AMPLIFIED)
    return model.eval()
