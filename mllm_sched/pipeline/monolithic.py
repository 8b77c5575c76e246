"""The reference that the decoupled pipeline is held against: the model whole, never split.

Everything here is Hugging Face's own ``forward`` and ``generate``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mllm_sched.pipeline.prompts import markers_of
from mllm_sched.pipeline.requests import Layout, Request
from mllm_sched.pipeline.split import split


@torch.inference_mode()
def monolithic(model: Any, request: Request) -> tuple[Tensor, tuple[int, ...]]:
    """Answer a request with the whole model.

    Parameters
    ----------
    model
        A Hugging Face model of a supported architecture.
    request
        Raw items and a prompt.

    Returns
    -------
    Logits of the prompt, (1, tokens, vocabulary), and the greedy tokens.
    """
    encoders, language = split(model, "whole")
    prepared = [(item, *encoders.prepare(item)) for item in request.items]
    layouts = [(item.modality, layout) for item, _, layout in prepared]
    ids = language.ids(request.prompt, layouts)
    inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    for item, tensors, layout in prepared:
        inputs |= {key: value for key, value in tensors.items() if key != "grid"}
        inputs |= _layout_inputs(model, item.modality, layout)
    if model.config.model_type == "qwen2_5_vl":
        marks = markers_of(language)
        inputs["mm_token_type_ids"] = (ids == marks["image"]) * 1 + (ids == marks["video"]) * 2
    logits: Tensor = model(input_ids=ids, **inputs).logits
    length = {"max_new_tokens": request.max_new_tokens, "do_sample": False}
    answer = model.generate(input_ids=ids, **inputs, **length)
    return logits, tuple(answer[0, ids.shape[1] :].tolist())


def _layout_inputs(model: Any, modality: str, layout: Layout) -> dict[str, Tensor]:
    found = {}
    if layout.grid:
        found[f"{modality}_grid_thw"] = torch.tensor([layout.grid])
    if layout.seconds_per_grid:
        omni = "omni" in model.config.model_type
        name = "video_second_per_grid" if omni else "second_per_grid_ts"
        found[name] = torch.tensor([layout.seconds_per_grid])
    return found
