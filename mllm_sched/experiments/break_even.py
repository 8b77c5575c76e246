"""When do features beat the input they were made from? Sizes, and the link rates that decide.

Inputs are really compressed. Sizes of features follow from real architectures, by the code that
checks them on the wire; no weights are needed. Features win if they reach the LLM sooner:

    8 B_features / R + T_edge  <  8 B_input / R + T_server                                   (1)

with T the encoding time on either side and R the rate of the link; its delay is the same for both.
Image, audio and video each have the times of their own encoder.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mllm_sched.experiments.strategy_costs import (
    CUTS,
    INPUTS,
    ITEMS,
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
from mllm_sched.pipeline.wire import wire_bytes

AUDIO_S, VIDEO_S, VIDEO_FPS, SEEN_FPS = 10.0, 2.0, 25.0, 2.0
RESIZED, RESIZED_SIDE = "raw RGB, as the encoder sees it", 336  # CLIP's tower in LLaVA


@lru_cache(maxsize=1)
def samples() -> tuple[NDArray[np.uint8], NDArray[np.int16], NDArray[np.uint8]]:
    """A 1080p photograph, 10 s of audio, 2 s of 720p video."""
    video = media.panned_video("china", VIDEO_S, VIDEO_FPS)
    return media.photograph("china"), media.speech_like(AUDIO_S), video


def seen_frames(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames that a model looks at: two a second, four in all."""
    step = VIDEO_FPS / SEEN_FPS
    return video[[round(step * number) for number in range(round(VIDEO_S * SEEN_FPS))]]


def input_sizes() -> pd.DataFrame:
    """Bytes of every form of the inputs.

    Returns
    -------
    Columns ``item``, ``form``, ``compressed``, ``bytes``, and ``psnr_db``: how near what is
    decoded is to the input, for what is compressed with loss and can be looked at.
    """
    image, audio, video = samples()
    flower, seen = media.photograph("flower"), seen_frames(video)
    resized = media.photograph("china", RESIZED_SIDE, RESIZED_SIDE)
    frames = [media.jpeg(frame) for frame in seen]
    stream = media.h264(video, VIDEO_FPS)
    rows = [
        ("image", "raw RGB", False, image.nbytes, np.nan),
        ("image", RESIZED, False, resized.nbytes, np.nan),
        _jpeg_row("JPEG, quality 95", image, 95),
        _jpeg_row("JPEG, quality 75", image, 75),
        _jpeg_row("JPEG, quality 75, flower", flower, 75),
        ("audio", "PCM, 16 bit", False, audio.nbytes, np.nan),
        ("audio", "FLAC", True, len(media.flac(audio)), np.nan),
        ("audio", "Opus, 24 kbit/s", True, len(media.opus(audio)), np.nan),
        ("video", "raw RGB, all frames", False, video.nbytes, np.nan),
        ("video", "raw RGB, frames seen", False, seen.nbytes, np.nan),
        _row("video", "JPEG, frames seen", b"".join(frames), np.stack(_shown(frames)), seen),
        _row("video", "H.264, 4 Mbit/s", stream, media.decoded(stream), video),
    ]
    return pd.DataFrame(rows, columns=["item", "form", "compressed", "bytes", "psnr_db"])


def _shown(files: list[bytes]) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def _jpeg_row(form: str, image: NDArray, quality: int) -> tuple[object, ...]:
    file = media.jpeg(image, quality)
    return _row("image", form, file, _shown([file])[0], image)


def _row(
    item: str, form: str, file: bytes, shown: NDArray, original: NDArray
) -> tuple[object, ...]:
    return item, form, True, len(file), psnr_db(shown, original)


def psnr_db(shown: NDArray, original: NDArray) -> float:
    """Peak signal-to-noise ratio of 8-bit pixels, to a tenth of a decibel; infinite if equal.

    Examples
    --------
    >>> psnr_db(np.array([0, 255]), np.array([0, 0]))
    3.0
    """
    error = sum(
        float(np.mean((one.astype(float) - other.astype(float)) ** 2))
        for one, other in zip(shown, original, strict=True)
    ) / len(original)
    return float("inf") if error == 0 else round(10 * float(np.log10(255**2 / error)), 1)


# Models that pool their features to a few tokens; they are no part of the pipeline here.
# BLIP-2: arXiv 2301.12597, section 3.1. ImageBind: arXiv 2305.05665, section 3.
POOLED = (("BLIP-2", 32, 768), ("ImageBind", 1, 1024))
RESIZED_FOR = "LLaVA-1.5"  # whose encoder sees 336 x 336 pixels
# Bounds on the pixels of an image or a frame. Source: preprocessor_config.json of
# Qwen/Qwen2.5-VL-7B-Instruct, min_pixels and max_pixels; the class's own default is 1003520.
QWEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12845056}
CUT_LABELS = {"encoder": "before projector", "projector": "after projector"}


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
                rows.append((modality, model, CUT_LABELS[cut], *shape))
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


WIRES = ("float16", "int8")
# What the forms of ``items_as`` are called, by item; sound and video are raw as they are seen.
FORMS = {
    "image": ("raw, 1080p", "raw, 336 x 336", "JPEG, 1080p"),
    "audio": ("raw, 16 kHz", None, "Opus"),
    "video": ("raw, 224 x 224", None, "JPEG, each frame"),
}


def forms() -> Iterator[tuple[str, str, EncodingPrice]]:
    """Every item in every form: modality, name of the form, and the item."""
    for place, (modality, names) in enumerate(FORMS.items()):
        for name, form in zip(names, INPUTS, strict=True):
            if name is not None:
                yield modality, name, items_as(form)[place]


def break_even_rates(setting: Setting = Setting()) -> pd.DataFrame:
    """Where features win, for every item, form of the input, cut and type on the wire.

    Returns
    -------
    Columns ``item``, ``form``, ``cut``, ``wire``, ``server_encodes``; ``edge_ms`` and
    ``server_ms``, which its encoder takes; ``input_bytes``, ``feature_bytes``; ``wins``: in words,
    and ``mbit_s``: the rate in question.
    """
    rows = []
    for precision in PRECISIONS:
        for modality, form, item in forms():
            for cut in CUTS:
                for wire in WIRES:
                    here = replace(setting, server_encodes=precision, cut=cut, wire=wire)
                    sizes = item.input_bytes, here.feature_bytes(item)
                    times = edge_s(here, item), server_s(here, item)
                    found = break_even(sizes[1], sizes[0], *times)
                    named = (modality, form, cut, wire, precision)
                    in_ms = (1000 * seconds for seconds in times)
                    rows.append((*named, *in_ms, *sizes, str(found), found.mbit_s))
    columns = ["item", "form", "cut", "wire", "server_encodes", "edge_ms", "server_ms"]
    columns += ["input_bytes", "feature_bytes", "wins", "mbit_s"]
    return pd.DataFrame(rows, columns=columns)


def in_words(rates: pd.DataFrame, server_encodes: str = "float16") -> pd.DataFrame:
    """Of ``break_even_rates``: rows are items and forms, columns the cut and the type."""
    chosen = rates[rates["server_encodes"] == server_encodes]
    cuts = {"encoder": "before the projector", "projector": "behind it"}
    table = chosen.assign(cut=chosen["cut"].map(cuts)).pivot(
        index=["item", "form"], columns=["cut", "wire"], values="wins"
    )
    order = pd.MultiIndex.from_product([cuts.values(), WIRES], names=["cut", "wire"])
    rows = pd.MultiIndex.from_tuples(
        list(chosen[["item", "form"]].drop_duplicates().itertuples(index=False, name=None)),
        names=["item", "form"],
    )
    return table.reindex(index=rows, columns=order)


def curves(rates_mbit_s: Sequence[float], setting: Setting = Setting()) -> pd.DataFrame:
    """How long features take to be there, over what their input takes to be encoded there.

    Returns
    -------
    Columns ``item``, ``form``, ``wire``, ``mbit_s``, ``ratio``; below 1 features win. The cut is
    that of the setting.
    """
    rows = []
    for modality, form, item in forms():
        for wire in WIRES:
            here = replace(setting, wire=wire)
            sent = here.feature_bytes(item), item.input_bytes
            for mbit_s in rates_mbit_s:
                ours_s, theirs_s = (8 * number / (mbit_s * 1e6) for number in sent)
                ratio = (ours_s + edge_s(here, item)) / (theirs_s + server_s(here, item))
                rows.append((modality, form, wire, mbit_s, ratio))
    return pd.DataFrame(rows, columns=["item", "form", "wire", "mbit_s", "ratio"])


def priced() -> pd.DataFrame:
    """Encoding times of the items on either side, in milliseconds."""
    setting = Setting()
    full = replace(setting, server_encodes="float32")
    rows = [
        (item.encoder, edge_s(setting, item), server_s(setting, item), server_s(full, item))
        for item in ITEMS
    ]
    names = ["edge, float32", "server, float16", "server, float32"]
    return pd.DataFrame(rows, columns=["encoder", *names]).set_index("encoder") * 1000
