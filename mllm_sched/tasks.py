"""What has to be encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

MODALITIES = ("image", "audio", "video")


@dataclass(frozen=True)
class Task:
    """One input to encode; ValueError names a value outside of its range.

    ``background_load`` is the share of the component that other work takes, in [0, 1): the other
    reading of the paper's "load", a context of the task and not a choice of the scheduler.
    """

    modality: str  # one of ``MODALITIES``
    encoder: str  # as the device knows it
    size: int = 1  # images, 30 s audio windows, or video clips
    deadline_s: float | None = None  # from arrival, within which the features are wanted
    arrival_s: float = 0.0  # since the stream began
    background_load: float = 0.0
    user: str = ""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise ValueError(f"modality={self.modality!r}: expected one of {known}")
        if not self.encoder:
            raise ValueError("encoder='': name the encoder of the task")
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected at least 1 item")
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s={self.deadline_s}: expected seconds above 0, or None")
        if not 0 <= self.arrival_s < math.inf:
            raise ValueError(f"arrival_s={self.arrival_s}: expected seconds, 0 or more")
        if not 0 <= self.background_load < 1:
            raise ValueError(f"background_load={self.background_load}: expected within [0, 1)")
