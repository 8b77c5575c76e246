"""What is asked of an architecture: where a model comes apart, and what its halves tell each other.

It names the modules of both halves and does what differs between kinds of model: turns raw input
into what the encoder takes, runs encoder and projector apart, and places every token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mllm_sched.pipeline.requests import Item, Layout

Inputs = dict[str, Tensor]
CHANNELS = "channels_last"  # a processor left to guess takes a picture 3 pixels high for colours


class Architecture(ABC):
    """One kind of model.

    Attributes
    ----------
    encoders, projectors
        Path of the module, by modality. A projector may lie within its encoder.
    language
        Paths of the LLM's modules.
    exportable
        Whether its encoders become ONNX files: they take one shape, whatever the input.
    """

    encoders: Mapping[str, str]
    projectors: Mapping[str, str]
    language: Sequence[str] = ("model.language_model", "lm_head")
    exportable = False

    @abstractmethod
    def processor(self, config: Any, modality: str) -> Any:
        """Turns raw input into tensors, where a checkpoint does not bring its own."""

    @abstractmethod
    def prepare(self, config: Any, processor: Any, item: Item) -> tuple[Inputs, Layout]:
        """What the encoder takes, and the layout of what it will give."""

    @abstractmethod
    def encode(self, model: nn.Module, modality: str, inputs: Inputs) -> Tensor:
        """Features (rows, width) before the projector; ``model`` has identities for projectors."""

    def project(
        self, projector: nn.Module, config: Any, features: Tensor, layout: Layout
    ) -> Tensor:
        """Features as the LLM takes them: (tokens, hidden size)."""
        projected: Tensor = projector(features)
        return projected

    @abstractmethod
    def tokens(self, config: Any, modality: str, layout: Layout) -> int:
        """Placeholders that an item takes; ValueError if its layout is none."""

    @abstractmethod
    def encoded_shape(self, config: Any, modality: str, layout: Layout) -> tuple[int, int]:
        """Rows and width of the features before the projector."""

    def placeholder(self, config: Any, modality: str) -> int:
        """The token in whose place features go."""
        return int(getattr(config, f"{modality}_token_id"))

    def brackets(self, config: Any, modality: str) -> tuple[int, int] | None:
        """Tokens that must stand before and after an item, if any must."""
        return None

    def positions(self, model: Any, ids: Tensor, layouts: Sequence[tuple[str, Layout]]) -> Tensor:
        """Position of every token: (1, tokens), or (3, 1, tokens) in time, height and width."""
        return torch.arange(ids.shape[1])[None]


def samples_of(item: Item) -> np.ndarray:
    """Samples of an audio item in float32, between -1 and 1."""
    return item.data.astype(np.float32) / 32768
