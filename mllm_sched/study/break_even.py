"""When do features beat the input they were made from? Sizes, and the link rates that decide.

Sizes of features follow from real architectures, by the code that checks them on the wire; no
weights are needed. Features win if they reach the LLM sooner:

    8 B_features / R + T_edge  <  8 B_input / R + T_server                                   (1)

with T the encoding time on either side and R the rate of the link. ``link_rates`` applies (1) to
the encoders that are priced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mllm_sched.pipeline.architectures import QwenVision, architecture_of
from mllm_sched.pipeline.requests import WIRE_TYPES, Item
from mllm_sched.pipeline.wire_header import wire_bytes
from mllm_sched.study.input_sizes import RESIZED, SEEN_FPS, samples, seen_frames

# Models that pool their features to a few tokens; they are no part of the pipeline here.
# BLIP-2: arXiv 2301.12597, section 3.1. ImageBind: arXiv 2305.05665, section 3.
POOLED = (("BLIP-2", 32, 768), ("ImageBind", 1, 1024))
RESIZED_FOR = "LLaVA-1.5"  # whose encoder sees 336 x 336 pixels
# Bounds on the pixels of an image or a frame. Source: preprocessor_config.json of
# Qwen/Qwen2.5-VL-7B-Instruct, min_pixels and max_pixels; the class's own default is 1003520.
QWEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12845056}
CUTS = {"encoder": "before projector", "projector": "after projector"}


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


def shapes_of(
    config: Any, item: Item, pixels: Mapping[str, int] | None = None
) -> list[tuple[str, int, int]]:
    """Rows and width of an item's features, at the cut behind the encoder and the projector.

    Parameters
    ----------
    config
        Of a model; no weights are needed.
    item
        Raw.
    pixels
        Bounds on what a Qwen sees of a picture; its class's own by default.

    Returns
    -------
    Cut, rows and width, twice.
    """
    architecture = architecture_of(config)
    processor = architecture.processor(config, item.modality)
    if pixels and isinstance(architecture, QwenVision) and item.modality != "audio":
        processor.size = pixels
    _, layout = architecture.prepare(config, processor, item)
    encoded = architecture.encoded_shape(config, item.modality, layout)
    tokens = architecture.tokens(config, item.modality, layout)
    return [("encoder", *encoded), ("projector", tokens, config.get_text_config().hidden_size)]


def feature_sizes() -> pd.DataFrame:
    """Bytes of the features of the inputs, without headers.

    Columns: item, model, cut, wire, rows, width, bytes.
    """
    rows = [("image", model, "pooled", *shape) for model, *shape in POOLED]
    image, audio, video = samples()
    items = {
        "image": Item("image", image),
        "audio": Item("audio", audio),
        "video": Item("video", seen_frames(video), SEEN_FPS),
    }
    for model, config in full_size_configs().items():
        for modality in architecture_of(config).encoders:
            for cut, *shape in shapes_of(config, items[modality], QWEN_PIXELS):
                rows.append((modality, model, CUTS[cut], *shape))
    sizes = pd.DataFrame(rows, columns=["item", "model", "cut", "rows", "width"])
    sizes = sizes.merge(pd.DataFrame({"wire": WIRE_TYPES}), how="cross")
    sizes["bytes"] = [
        wire_bytes(row.rows, row.width, row.wire) for row in sizes.itertuples(index=False)
    ]
    return sizes[["item", "model", "cut", "wire", "rows", "width", "bytes"]]


def gains(features: pd.DataFrame, inputs: pd.DataFrame) -> pd.DataFrame:
    """How many times smaller features are than each form of their input; below 1 they lose.

    Rows are item, model, cut and wire type; columns are the forms of the input. An image of
    336 x 336 pixels stands beside the one encoder that sees it so.
    """
    pairs = features.merge(inputs, on="item", suffixes=("", "_input"))
    pairs = pairs[(pairs["form"] != RESIZED) | (pairs["model"] == RESIZED_FOR)]
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

    def __str__(self) -> str:
        return self.where if self.mbit_s is None else f"{self.where} {self.mbit_s:.0f} Mbit/s"


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
