"""Who encodes how much, where, and at what price: the inputs of the calculator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mllm_sched.pipeline.work import encoder_modalities

DEFAULT_MIX = {"clip-vit-l14-336": 6, "whisper-small": 3, "videomae-base": 1}


@dataclass(frozen=True)
class Scenario:
    """Who encodes how much, where.

    Attributes
    ----------
    tasks_per_day
        Of one device.
    devices
        How many.
    price_per_kwh
        Of electricity, in any currency; the examples say euro.
    gco2_per_kwh
        Carbon intensity, grams of CO2e.
    mix
        Encoder to its share of the tasks; scaled to sum to 1.
    limit_s
        Latency limit of encoding; it must be one that was played.
    days
        The period.

    Raises
    ------
    ValueError
        For a value outside of what is stated; the message names it and says what to give.

    Examples
    --------
    >>> Scenario(mix={"whisper-small": 3, "clip-vit-b32": 1}).mix
    {'whisper-small': 0.75, 'clip-vit-b32': 0.25}
    """

    tasks_per_day: float = 10_000
    devices: int = 100
    price_per_kwh: float = 0.30
    gco2_per_kwh: float = 300.0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    limit_s: float = 0.2
    days: float = 365.0

    def __post_init__(self) -> None:
        for name in ("tasks_per_day", "limit_s", "days"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0")
        for name in ("price_per_kwh", "gco2_per_kwh"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: give a number, 0 or more")
        if not 1 <= self.devices < math.inf or self.devices != int(self.devices):
            raise ValueError(f"devices={self.devices}: give a whole number, 1 or more")
        object.__setattr__(self, "mix", _shares(self.mix))

    def tasks(self, encoder: str) -> float:
        """Tasks of an encoder on one device in the whole period."""
        return self.tasks_per_day * self.days * self.mix.get(encoder, 0.0)


def _shares(mix: Mapping[str, float]) -> dict[str, float]:
    known = encoder_modalities()
    for encoder, share in mix.items():
        if encoder not in known:
            raise ValueError(f"mix: encoder {encoder!r}: expected some of {', '.join(known)}")
        if not 0 <= share < math.inf:
            raise ValueError(f"mix: {encoder}={share}: give a share, 0 or more")
    total = sum(mix.values())
    if not 0 < total < math.inf:
        raise ValueError(f"mix: shares sum to {total:g}: give at least one a number above 0")
    return {encoder: share / total for encoder, share in mix.items() if share > 0}
