"""What an eavesdropper on the link sees: raw input, or an image reconstructed from features.

The attack is ridge regression from the features of patches to their pixels, learned on one
photograph and tried on another: the edge's half of a published model is no secret. Two controls: a
mosaic, which keeps only the mean colour of large tiles, and another photograph.
"""

from __future__ import annotations

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


def eavesdropped(
    model: str, wire: str = "float16"
) -> tuple[pd.DataFrame, dict[str, NDArray[np.uint8]]]:
    """The same photograph, seen raw and through the features of a model with one token a patch.

    ``model`` is a small Qwen; ValueError for another kind. ``wire`` is the type of the features.

    A table with ``what`` was seen, its ``correlation`` with the original, ``psnr_db``, and
    ``sent_bytes`` of the whole message (0 for a control). And the pictures by ``what``, uint8 of
    shape (height, width, 3).
    """
    encoders = load_encoders(model, ["image"])
    if not isinstance(encoders.architecture, QwenVision):
        raise ValueError(f"{model} mixes patches: give a model with one token a patch, a Qwen")
    original = media.photograph(TRIED_ON, HEIGHT, WIDTH)
    item = Item("image", original)
    raw = pack(Request([0], (item,)), encoders.identity)
    seen = {"raw input": (load(raw)["part0"].numpy(), len(raw))}
    for cut, where in (("encoder", "before"), ("projector", "behind")):
        seen[f"features {where} the projector"] = _attack(encoders, item, cut, wire)
    tiles = original.reshape(HEIGHT // MOSAIC, MOSAIC, WIDTH // MOSAIC, MOSAIC, 3)
    means = tiles.mean((1, 3)).round().astype(np.uint8)
    mosaic = np.repeat(np.repeat(means, MOSAIC, 0), MOSAIC, 1)
    seen[f"control: mosaic of {MOSAIC} pixels"] = mosaic, 0
    seen["control: another photograph"] = media.photograph(LEARNED_FROM, HEIGHT, WIDTH), 0
    rows = [
        (
            what,
            round(float(np.corrcoef(image.ravel(), original.ravel())[0, 1]), 2),
            psnr_db(image, original),
            sent_bytes,
        )
        for what, (image, sent_bytes) in seen.items()
    ]
    table = pd.DataFrame(rows, columns=["what", "correlation", "psnr_db", "sent_bytes"])
    return table, {what: image for what, (image, _) in seen.items()}


def _attack(
    encoders: EncoderHalf, item: Item, cut: str, wire: str
) -> tuple[NDArray[np.uint8], int]:
    """The photograph as it follows from its features, and how many bytes were sent."""
    vision = encoders.config.vision_config  # pixels along the side of what a row stands for:
    side = int(vision.patch_size * (vision.spatial_merge_size if cut == "projector" else 1))
    scene = media.photograph(LEARNED_FROM, HEIGHT + 91, WIDTH + 136)
    features, pixels = [], []
    for index in range(CROPS):  # in different places and mirrored
        top, left = index * 7, (index * 37) % 136
        crop = scene[top : top + HEIGHT, left : left + WIDTH]
        crop = np.ascontiguousarray(crop[:, ::-1] if index % 2 else crop)
        features.append(_intercepted(encoders, Item("image", crop), cut, wire)[0])
        tiles = crop.reshape(HEIGHT // side, side, WIDTH // side, side, 3)
        pixels.append(tiles.transpose(0, 2, 1, 3, 4).reshape(len(features[-1]), -1) / 255.0)
    attack = Ridge(RIDGE).fit(np.concatenate(features), np.concatenate(pixels))
    rows, sent_bytes = _intercepted(encoders, item, cut, wire)
    tiles = attack.predict(rows).reshape(HEIGHT // side, WIDTH // side, side, side, 3)
    image = np.clip(tiles.transpose(0, 2, 1, 3, 4).reshape(HEIGHT, WIDTH, 3), 0, 1) * 255
    return image.round().astype(np.uint8), sent_bytes


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
    order = encoders.architecture.reading_order(part.layout).numpy()
    _, height, width = part.layout.grid or (1, 1, 1)
    placed = grouped[order].reshape(height // merge, width // merge, merge, merge, -1)
    return placed.transpose(0, 2, 1, 3, 4).reshape(height * width, -1)
