"""When do features beat the input they were made from? Sizes, and the link rates that decide.

Sizes of inputs are those of real files that were really compressed. Sizes of features follow from
real architectures, by the code that checks them on the wire; no weights are needed. Features win
if they reach the LLM sooner:

    8 B_features / R + T_edge  <  8 B_input / R + T_server                                   (1)

with T the encoding time on either side and R the rate of the link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.pipeline import codecs, media
from mllm_sched.pipeline.architectures import architecture_of
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.wire_types import WIRE_TYPES, wire_bytes

AUDIO_S, VIDEO_S, VIDEO_FPS, SEEN_FPS = 10.0, 2.0, 25.0, 2.0

# Models that pool their features to a few tokens; they are no part of the pipeline here.
# BLIP-2: arXiv 2301.12597, section 3.1. ImageBind: arXiv 2305.05665, section 3.
POOLED = (("BLIP-2", 32, 768), ("ImageBind", 1, 1024))


@lru_cache(maxsize=1)
def _samples() -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.uint8]]:
    """A 1080p photograph, 10 s of audio, 2 s of 720p video."""
    video = media.panned_video("china", VIDEO_S, VIDEO_FPS)
    return media.photograph("china"), media.speech_like(AUDIO_S), video


def _seen(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames that a model looks at."""
    return video[:: round(VIDEO_FPS / SEEN_FPS)]


def input_sizes() -> pd.DataFrame:
    """Bytes of every form of the inputs. Columns: item, form, compressed, bytes."""
    image, audio, video = _samples()
    flower, seen = media.photograph("flower"), _seen(video)
    rows = [
        ("image", "raw RGB", False, image.nbytes),
        ("image", "JPEG, quality 95", True, len(codecs.jpeg(image, 95))),
        ("image", "JPEG, quality 75", True, len(codecs.jpeg(image, 75))),
        ("image", "JPEG, quality 75, flower", True, len(codecs.jpeg(flower, 75))),
        ("audio", "PCM, 16 bit", False, audio.nbytes),
        ("audio", "FLAC", True, len(codecs.flac(audio))),
        ("audio", "Opus, 24 kbit/s", True, len(codecs.opus(audio))),
        ("video", "raw RGB, all frames", False, video.nbytes),
        ("video", "raw RGB, frames seen", False, seen.nbytes),
        ("video", "JPEG, frames seen", True, sum(len(codecs.jpeg(frame)) for frame in seen)),
        ("video", "H.264, 4 Mbit/s", True, len(codecs.h264(video, VIDEO_FPS))),
    ]
    return pd.DataFrame(rows, columns=["item", "form", "compressed", "bytes"])


def full_size_configs() -> Mapping[str, Any]:
    """Configurations of published models at full size, from their classes' and papers' values.

    LLaVA-1.5-7B: arXiv 2310.03744. Qwen2.5-VL-7B: arXiv 2502.13923, table 1. Voxtral Mini: arXiv
    2507.13264. Qwen2.5-Omni-7B: arXiv 2503.20215.
    """
    from transformers import (
        LlavaConfig,
        Qwen2_5_VLConfig,
        Qwen2_5OmniThinkerConfig,
        VoxtralConfig,
    )

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
    return {
        "LLaVA-1.5": LlavaConfig(),
        "Qwen2.5-VL": Qwen2_5_VLConfig(vision_config=vision, text_config=text),
        "Voxtral": VoxtralConfig(),
        "Qwen2.5-Omni": Qwen2_5OmniThinkerConfig(vision_config=vision, text_config=text),
    }


def feature_sizes() -> pd.DataFrame:
    """Bytes of the features of the inputs, without headers.

    Columns: item, model, cut, wire, rows, width, bytes.
    """
    rows = [("image", model, "pooled", *shape) for model, *shape in POOLED]
    image, audio, video = _samples()
    items = {
        "image": Item("image", image),
        "audio": Item("audio", audio),
        "video": Item("video", _seen(video), SEEN_FPS),
    }
    for model, config in full_size_configs().items():
        architecture = architecture_of(config)
        for modality in architecture.encoders:
            processor = architecture.processor(config, modality)
            _, layout = architecture.prepare(config, processor, items[modality])
            encoded = architecture.encoded_shape(config, modality, layout)
            tokens = architecture.tokens(config, modality, layout)
            width = config.get_text_config().hidden_size
            rows.append((modality, model, "before projector", *encoded))
            rows.append((modality, model, "after projector", tokens, width))
    sizes = pd.DataFrame(rows, columns=["item", "model", "cut", "rows", "width"])
    sizes = sizes.merge(pd.DataFrame({"wire": WIRE_TYPES}), how="cross")
    sizes["bytes"] = [
        wire_bytes(row.rows, row.width, row.wire) for row in sizes.itertuples(index=False)
    ]
    return sizes[["item", "model", "cut", "wire", "rows", "width", "bytes"]]


def gains(features: pd.DataFrame, inputs: pd.DataFrame) -> pd.DataFrame:
    """How many times smaller features are than each form of their input; below 1 they lose.

    Rows are item, model, cut and wire type; columns are the forms of the input.
    """
    pairs = features.merge(inputs, on="item", suffixes=("", "_input"))
    pairs["gain"] = pairs["bytes_input"] / pairs["bytes"]
    keys = ["item", "model", "cut", "wire"]
    return pairs.pivot_table("gain", keys, "form", sort=False)


@dataclass(frozen=True)
class BreakEven:
    """Where features win by (1): ``always``, ``never``, ``below`` or ``above`` a link rate."""

    where: str
    mbit_s: float | None = None

    def wins(self, mbit_s: float) -> bool:
        """Whether features are there sooner at this rate."""
        if self.mbit_s is None:
            return self.where == "always"
        return (mbit_s < self.mbit_s) == (self.where == "below") and mbit_s != self.mbit_s


def break_even(
    feature_bytes: float, input_bytes: float, edge_s: float = 0.0, server_s: float = 0.0
) -> BreakEven:
    """The rates at which features are there sooner than their input, encoded on the server.

    Parameters
    ----------
    feature_bytes, input_bytes
        Sent over the link.
    edge_s, server_s
        Encoding time on either side.

    Raises
    ------
    ValueError
        For a negative value.

    Examples
    --------
    >>> break_even(2e6, 6e6, edge_s=0.5, server_s=0.1)
    BreakEven(where='below', mbit_s=80.0)
    """
    for name, value in vars().copy().items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value}: expected 0 or more")
    saved_bits, lost_s = 8 * (input_bytes - feature_bytes), edge_s - server_s
    if saved_bits > 0 and lost_s > 0:
        return BreakEven("below", saved_bits / lost_s / 1e6)
    if saved_bits < 0 and lost_s < 0:
        return BreakEven("above", saved_bits / lost_s / 1e6)
    return BreakEven("always" if saved_bits > 0 or lost_s < 0 else "never")


def rates(
    features: pd.DataFrame, inputs: pd.DataFrame, edge_s: float, server_s: float
) -> pd.DataFrame:
    """Where features of one item win, in words: rows as in ``gains``, columns forms of the input.

    Parameters
    ----------
    features, inputs
        Of ``feature_sizes`` and ``input_sizes``.
    edge_s, server_s
        Encoding time on either side.
    """
    pairs = features.merge(inputs, on="item", suffixes=("", "_input"))
    pairs["wins"] = [
        _in_words(break_even(row.bytes, row.bytes_input, edge_s, server_s))
        for row in pairs.itertuples(index=False)
    ]
    keys = ["model", "cut", "wire"]
    return pairs.pivot_table("wins", keys, "form", sort=False, aggfunc="first")


def _in_words(found: BreakEven) -> str:
    if found.mbit_s is None:
        return found.where
    return f"{found.where} {found.mbit_s:.0f} Mbit/s"
