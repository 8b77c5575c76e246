"""What someone who reads the link sees: raw input at once, and how much of it features give away.

The attack is the plainest there is: ridge regression from the features of patches to their pixels,
learned on one photograph and tried on another. Whoever holds the edge's half, which is no secret
for a published model, can make as many pairs to learn from as they like. Two controls stand beside
it: a mosaic, which keeps nothing but the mean colour of large tiles, and another photograph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.torch import load
from sklearn.linear_model import Ridge

from mllm_sched.experiments.break_even import psnr_db
from mllm_sched.pipeline import media
from mllm_sched.pipeline.architectures import QwenVision
from mllm_sched.pipeline.checkpoints import load_encoders
from mllm_sched.pipeline.requests import Item, Part, Request
from mllm_sched.pipeline.split import EncoderHalf
from mllm_sched.pipeline.wire import pack, read_parts

HEIGHT, WIDTH = 336, 504  # 24 x 36 patches
MOSAIC = 28  # pixels along a tile's side: as much as one token behind the projector stands for
LEARNED_FROM, TRIED_ON = "flower", "china"
CROPS = 12  # of the photograph that is learned from
RIDGE = 1.0


@dataclass(frozen=True)
class Seen:
    """A photograph as it was seen on the link.

    Attributes
    ----------
    what
        Crossed the link, or is a control.
    image
        uint8 of shape (height, width, 3).
    correlation
        Of its pixels with those of the original.
    psnr_db
        Peak signal-to-noise ratio to the original; infinite if they are equal.
    sent_bytes
        Of the whole message; 0 for a control.
    """

    what: str
    image: NDArray[np.uint8]
    correlation: float
    psnr_db: float
    sent_bytes: int


def eavesdropped(model: str, wire: str = "float16") -> list[Seen]:
    """The same photograph, seen raw and through the features of a model with one token a patch.

    Parameters
    ----------
    model
        A small Qwen, whose encoder keeps patches apart.
    wire
        Type of the features on the link.

    Returns
    -------
    Raw input; features before the projector, and behind it; then the controls.

    Raises
    ------
    ValueError
        For a model of another kind.
    """
    encoders = load_encoders(model, ["image"])
    if not isinstance(encoders.architecture, QwenVision):
        raise ValueError(f"{model} mixes patches: give a model with one token a patch, a Qwen")
    original = media.photograph(TRIED_ON, HEIGHT, WIDTH)
    item = Item("image", original)
    raw = pack(Request([0], (item,)), encoders.identity)
    seen = [_seen("raw input", load(raw)["part0"].numpy(), original, len(raw))]
    for cut in ("encoder", "projector"):
        attack = Ridge(RIDGE).fit(*_pairs(encoders, cut, wire))
        features, sent_bytes = _intercepted(encoders, item, cut, wire)
        patches = attack.predict(features)
        image = _image(patches, _patch(encoders, cut))
        where = "before" if cut == "encoder" else "behind"
        seen.append(_seen(f"features {where} the projector", image, original, sent_bytes))
    mosaic = np.repeat(np.repeat(_tile_means(original), MOSAIC, 0), MOSAIC, 1)
    seen.append(_seen(f"control: mosaic of {MOSAIC} pixels", mosaic, original, 0))
    other = media.photograph(LEARNED_FROM, HEIGHT, WIDTH)
    return [*seen, _seen("control: another photograph", other, original, 0)]


def _tile_means(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tiles = image.reshape(HEIGHT // MOSAIC, MOSAIC, WIDTH // MOSAIC, MOSAIC, 3)
    return tiles.mean((1, 3)).round().astype(np.uint8)


def _crops() -> Iterator[NDArray[np.uint8]]:
    """Views of the photograph that is learned from, in different places and mirrored."""
    scene = media.photograph(LEARNED_FROM, HEIGHT + 91, WIDTH + 136)
    for index in range(CROPS):
        top, left = index * 7, (index * 37) % 136
        crop = scene[top : top + HEIGHT, left : left + WIDTH]
        yield np.ascontiguousarray(crop[:, ::-1] if index % 2 else crop)


def _pairs(encoders: EncoderHalf, cut: str, wire: str) -> tuple[NDArray, NDArray]:
    features, pixels = [], []
    for crop in _crops():
        features.append(_intercepted(encoders, Item("image", crop), cut, wire)[0])
        pixels.append(_patches(crop, _patch(encoders, cut)))
    return np.concatenate(features), np.concatenate(pixels)


def _intercepted(encoders: EncoderHalf, item: Item, cut: str, wire: str) -> tuple[NDArray, int]:
    """Features as they are read off the message, one row a patch in reading order."""
    part = encoders.encode(item, cut)
    data = pack(Request([0], (item,)), encoders.identity, [part], wire)
    (got,) = read_parts(data)
    return _in_reading_order(encoders, got), len(data)


def _in_reading_order(encoders: EncoderHalf, part: Part) -> NDArray:
    rows = part.features.float().numpy()
    if part.cut == "projector":
        return rows
    # Before the projector four patches that become one token follow each other, window by window.
    merge = encoders.config.vision_config.spatial_merge_size
    grouped = rows.reshape(-1, merge**2, rows.shape[1])
    assert isinstance(encoders.architecture, QwenVision)
    order = encoders.architecture.reading_order(encoders.config, part.layout).numpy()
    _, height, width = part.layout.grid or (1, 1, 1)
    placed = grouped[order].reshape(height // merge, width // merge, merge, merge, -1)
    return placed.transpose(0, 2, 1, 3, 4).reshape(height * width, -1)


def _patch(encoders: EncoderHalf, cut: str) -> int:
    """Pixels along the side of what one row of features stands for."""
    vision = encoders.config.vision_config
    return int(vision.patch_size * (vision.spatial_merge_size if cut == "projector" else 1))


def _patches(image: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    rows, columns = image.shape[0] // side, image.shape[1] // side
    tiles = image.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * columns, -1) / 255.0


def _image(patches: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    rows, columns = HEIGHT // side, WIDTH // side
    tiles = patches.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    pixels = np.clip(tiles.reshape(HEIGHT, WIDTH, 3), 0, 1) * 255
    return pixels.round().astype(np.uint8)


def _seen(what: str, image: NDArray, original: NDArray, sent_bytes: int) -> Seen:
    correlation = float(np.corrcoef(image.ravel(), original.ravel())[0, 1])
    return Seen(what, image, correlation, psnr_db(image, original), sent_bytes)


def scores(seen: Sequence[Seen]) -> pd.DataFrame:
    """Numbers of what was seen: ``what``, ``correlation``, ``psnr_db``, ``sent_bytes``."""
    rows = [(each.what, each.correlation, each.psnr_db, each.sent_bytes) for each in seen]
    table = pd.DataFrame(rows, columns=["what", "correlation", "psnr_db", "sent_bytes"])
    return table.round({"correlation": 2, "psnr_db": 1})
