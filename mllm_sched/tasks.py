"""What has to be encoded: tasks, and the streams in which they arrive."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

MODALITIES = ("image", "audio", "video")


@dataclass(frozen=True)
class Task:
    """One input to encode.

    Parameters
    ----------
    modality
        ``image``, ``audio`` or ``video``.
    encoder
        Name of the encoder, as the device knows it.
    size
        Items to encode: images, 30 s audio windows, or video clips.
    deadline_s
        Seconds from arrival within which the features are wanted; none by default.
    arrival_s
        Seconds since the stream began.
    background_load
        Share of the component that other work takes, in [0, 1). The other reading of the
        paper's "load"; a context of the task, not a choice of the scheduler.
    user
        Who asked.

    Raises
    ------
    ValueError
        If a value is outside what is stated above.

    Examples
    --------
    >>> Task("image", "clip-vit-b32").size
    1
    """

    modality: str
    encoder: str
    size: int = 1
    deadline_s: float | None = None
    arrival_s: float = 0.0
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


def periodic_stream(task: Task, period_s: float) -> Iterator[Task]:
    """The same task again and again, one each ``period_s`` seconds, without end.

    >>> stream = periodic_stream(Task("image", "clip-vit-b32"), period_s=0.5)
    >>> [next(stream).arrival_s for _ in range(3)]
    [0.0, 0.5, 1.0]
    """
    if not 0 < period_s < math.inf:
        raise ValueError(f"period_s={period_s}: expected seconds above 0")
    return (replace(task, arrival_s=step * period_s) for step in count())


def poisson_stream(
    tasks: Sequence[Task],
    rate_hz: float,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
) -> Iterator[Task]:
    """Tasks drawn from a mix, arriving as a Poisson process, without end.

    Parameters
    ----------
    tasks
        The kinds of task that arrive.
    rate_hz
        Mean arrivals per second.
    rng
        Draws the kinds and the gaps.
    weights
        Share of each kind; equal by default, scaled to sum to 1.
    """
    if not tasks:
        raise ValueError("a stream needs at least one kind of task")
    if not 0 < rate_hz < math.inf:
        raise ValueError(f"rate_hz={rate_hz}: expected arrivals per second above 0")
    shares = np.ones(len(tasks)) if weights is None else np.asarray(weights, dtype=float)
    if len(shares) != len(tasks) or (shares < 0).any() or not 0 < shares.sum() < math.inf:
        raise ValueError(f"weights={weights}: expected {len(tasks)} shares, none negative")
    return _poisson(tasks, rate_hz, rng, shares / shares.sum())


def _poisson(
    tasks: Sequence[Task], rate_hz: float, rng: np.random.Generator, shares: np.ndarray
) -> Iterator[Task]:
    now_s = 0.0
    while True:
        now_s += rng.exponential(1 / rate_hz)
        yield replace(tasks[rng.choice(len(tasks), p=shares)], arrival_s=now_s)
