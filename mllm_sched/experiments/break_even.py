"""When do features beat the input they were made from? Sizes, and the link rates that decide.

Inputs are really compressed. Sizes of features follow from real architectures, by the code that
checks them on the wire; no weights are needed. Features win if they reach the LLM sooner:

    8 B_features / R + T_edge  <  8 B_input / R + T_server                                   (1)

with T the encoding time on either side and R the rate of the link; its delay is the same for both.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from mllm_sched.experiments.strategy_costs import (
    CUTS,
    INPUTS,
    PRECISIONS,
    EncodingPrice,
    Setting,
    edge_s,
    items_as,
    server_s,
)
from mllm_sched.pipeline import media
from mllm_sched.pipeline.architectures import QwenVision, architecture_of
from mllm_sched.pipeline.requests import WIRE_TYPES, Item
from mllm_sched.pipeline.small_models import build
from mllm_sched.pipeline.split import split
from mllm_sched.pipeline.wire import wire_bytes

AUDIO_S, VIDEO_S, VIDEO_FPS, SEEN_FPS = 10.0, 2.0, 25.0, 2.0
RESIZED, RESIZED_SIDE = "raw RGB, as the encoder sees it", 336  # CLIP's tower in LLaVA


@lru_cache(maxsize=1)
def samples() -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.uint8], NDArray[np.uint8]]:
    """A 1080p photograph, 10 s of audio, 2 s of 720p video, and the 4 frames a model sees of it."""
    video = media.panned_video("china", VIDEO_S, VIDEO_FPS)
    step = VIDEO_FPS / SEEN_FPS
    seen = video[[round(step * number) for number in range(round(VIDEO_S * SEEN_FPS))]]
    return media.photograph("china"), media.speech_like(AUDIO_S), video, seen


def input_sizes() -> pd.DataFrame:
    """Bytes of every form of the inputs, and ``psnr_db`` of images compressed with loss."""
    image, audio, video, seen = samples()
    resized = media.photograph("china", RESIZED_SIDE, RESIZED_SIDE)
    frames = [media.jpeg(frame) for frame in seen]
    shown = np.stack([_pixels(frame) for frame in frames])
    stream = media.h264(video, VIDEO_FPS)
    rows = [
        ("image", "raw RGB", False, image.nbytes, np.nan),
        ("image", RESIZED, False, resized.nbytes, np.nan),
        _jpeg_row("JPEG, quality 95", image, 95),
        _jpeg_row("JPEG, quality 75", image, 75),
        _jpeg_row("JPEG, quality 75, flower", media.photograph("flower"), 75),
        ("audio", "PCM, 16 bit", False, audio.nbytes, np.nan),
        ("audio", "FLAC", True, len(media.flac(audio)), np.nan),
        ("audio", "Opus, 24 kbit/s", True, len(media.opus(audio)), np.nan),
        ("video", "raw RGB, all frames", False, video.nbytes, np.nan),
        ("video", "raw RGB, frames seen", False, seen.nbytes, np.nan),
        ("video", "JPEG, frames seen", True, sum(map(len, frames)), psnr_db(shown, seen)),
        ("video", "H.264, 4 Mbit/s", True, len(stream), psnr_db(media.decoded(stream), video)),
    ]
    return pd.DataFrame(rows, columns=["item", "form", "compressed", "bytes", "psnr_db"])


def _jpeg_row(form: str, image: NDArray[np.uint8], quality: int) -> tuple[object, ...]:
    file = media.jpeg(image, quality)
    return "image", form, True, len(file), psnr_db(_pixels(file), image)


def _pixels(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def psnr_db(shown: NDArray, original: NDArray) -> float:
    """Peak signal-to-noise ratio of 8-bit pixels, to a tenth of a decibel; infinite if equal."""
    error = sum(  # row by row or frame by frame, as differences take four times the memory
        float(np.mean(np.subtract(one, other, dtype=np.int32) ** 2))
        for one, other in zip(shown, original, strict=True)
    ) / len(original)
    return float("inf") if error == 0 else round(10 * float(np.log10(255**2 / error)), 1)


# Models that pool their features to a few tokens; they are no part of the pipeline here.
# BLIP-2: arXiv 2301.12597, section 3.1. ImageBind: arXiv 2305.05665, section 3.
POOLED = (("BLIP-2", 32, 768), ("ImageBind", 1, 1024))
# Bounds on the pixels of an image or a frame. Source: preprocessor_config.json of
# Qwen/Qwen2.5-VL-7B-Instruct, min_pixels and max_pixels; the class's own default is 1003520.
QWEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12845056}
CUT_LABELS = {"encoder": "before projector", "projector": "after projector"}


def full_size_configs() -> Mapping[str, Any]:
    """Configurations of published models at full size, from their classes' and papers' values.

    LLaVA-1.5-7B: arXiv 2310.03744. Qwen2.5-VL-7B: arXiv 2502.13923, table 1. Voxtral Mini: arXiv
    2507.13264. Qwen2.5-Omni-7B: arXiv 2503.20215.
    """
    import transformers

    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    }
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    qwen: dict[str, Any] = {"vision_config": vision, "text_config": text}
    return {
        "LLaVA-1.5": transformers.LlavaConfig(),
        "Qwen2.5-VL": transformers.Qwen2_5_VLConfig(**qwen),
        "Voxtral": transformers.VoxtralConfig(),
        "Qwen2.5-Omni": transformers.Qwen2_5OmniThinkerConfig(**qwen),
    }


def weight_sizes() -> pd.DataFrame:
    """FP16 weights of models at full size in GB, counted; both halves hold the projectors."""
    rows = []
    for name, config in full_size_configs().items():
        with torch.device("meta"):
            model = build(config)
        halves = split(model, "counted")
        whole = 2 * sum(weights.numel() for weights in model.parameters())
        rows.append((name, whole / 1e9, *(half.memory_bytes / 2e9 for half in halves)))
    return pd.DataFrame(rows, columns=["model", "whole_gb", "edge_gb", "server_gb"])


def shapes_of(
    config: Any, item: Item, pixels: Mapping[str, int] | None = None
) -> dict[str, tuple[int, int]]:
    """Rows and width of an item's features by cut, behind the ``encoder`` and the ``projector``.

    ``config`` is a model's; no weights are needed. ``pixels`` bounds what a Qwen sees of a picture;
    its class's own by default.
    """
    architecture = architecture_of(config)
    processor = architecture.processor(item.modality)
    if pixels and isinstance(architecture, QwenVision) and item.modality != "audio":
        processor.size = pixels
    _, layout = architecture.prepare(processor, item)
    rows, width = architecture.encoded_shape(item.modality, layout)
    tokens = architecture.tokens(item.modality, layout)
    return {
        "encoder": (rows, width),
        "projector": (tokens, config.get_text_config().hidden_size),
    }


def feature_sizes() -> pd.DataFrame:
    """Bytes of the features of the inputs, without headers."""
    shapes = [("image", model, "pooled", rows, width) for model, rows, width in POOLED]
    image, audio, _, seen = samples()
    items = [Item("image", image), Item("audio", audio), Item("video", seen, SEEN_FPS)]
    by_modality = {item.modality: item for item in items}
    for model, config in full_size_configs().items():
        for modality in architecture_of(config).encoders:
            found = shapes_of(config, by_modality[modality], QWEN_PIXELS)
            shapes += [(modality, model, CUT_LABELS[cut], *found[cut]) for cut in CUTS]
    rows = [
        (item, model, cut, wire, rows, width, wire_bytes(rows, width, wire))
        for item, model, cut, rows, width in shapes
        for wire in WIRE_TYPES
    ]
    return pd.DataFrame(rows, columns=["item", "model", "cut", "wire", "rows", "width", "bytes"])


def break_even(
    feature_bytes: float, input_bytes: float, edge_s: float = 0.0, server_s: float = 0.0
) -> tuple[str, float]:
    """Where features are there sooner than their input, encoded on the server, by (1).

    ``below`` or ``above``, and the link rate in Mbit/s; ``always`` or ``never``, and NaN.

    Examples
    --------
    >>> break_even(2e6, 6e6, edge_s=0.5, server_s=0.1)
    ('below', 80.0)
    """
    saved_bits, lost_s = 8 * (input_bytes - feature_bytes), edge_s - server_s
    if saved_bits > 0 and lost_s > 0:
        return "below", saved_bits / lost_s / 1e6
    if saved_bits < 0 and lost_s < 0:
        return "above", saved_bits / lost_s / 1e6
    return "always" if saved_bits > 0 or lost_s < 0 else "never", float("nan")


# What the forms of ``items_as`` are called, by item; sound and video are raw as they are seen.
FORMS = {
    "image": ("raw, 1080p", "raw, 336 x 336", "JPEG, 1080p"),
    "audio": ("raw, 16 kHz", None, "Opus"),
    "video": ("raw, 224 x 224", None, "JPEG, each frame"),
}


def forms() -> list[tuple[str, str, EncodingPrice]]:
    """Every item in every form: modality, name of the form, and the item."""
    return [
        (modality, name, items_as(form)[place])
        for place, (modality, names) in enumerate(FORMS.items())
        for name, form in zip(names, INPUTS, strict=True)
        if name is not None
    ]


def break_even_rates(setting: Setting = Setting()) -> pd.DataFrame:
    """Where features win, for every item, form of the input, cut and type on the wire.

    ``edge_ms`` and ``server_ms`` are what the encoder takes; ``wins`` says it in words, and
    ``mbit_s`` is the rate in question.
    """
    rows = []
    for precision in PRECISIONS:
        for modality, form, item in forms():
            for cut in CUTS:
                for wire in ("float16", "int8"):
                    here = replace(setting, server_encodes=precision, cut=cut, wire=wire)
                    sizes = item.input_bytes, here.feature_bytes(item)
                    times = edge_s(here, item), server_s(here, item)
                    where, mbit_s = break_even(sizes[1], sizes[0], *times)
                    wins = where if np.isnan(mbit_s) else f"{where} {mbit_s:.0f} Mbit/s"
                    in_ms = (1000 * seconds for seconds in times)
                    rows.append(
                        (modality, form, cut, wire, precision, *in_ms, *sizes, wins, mbit_s)
                    )
    columns = ["item", "form", "cut", "wire", "server_encodes", "edge_ms", "server_ms"]
    columns += ["input_bytes", "feature_bytes", "wins", "mbit_s"]
    return pd.DataFrame(rows, columns=columns)
