"""What a node takes upon itself, and the device that it imitates."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_sched.pipeline.options import MESSAGE_BYTES, REQUESTS


@dataclass(frozen=True)
class Limits:
    """What a node takes upon itself.

    Attributes
    ----------
    requests
        At a time; one more is refused with RESOURCE_EXHAUSTED.
    bytes
        Of one message.
    new_tokens
        Of one answer.
    idle_s
        That an upload may pause in all.
    answer_s
        For a request without a deadline, or with a later one.
    """

    requests: int = REQUESTS
    bytes: int = MESSAGE_BYTES
    new_tokens: int = 1024
    idle_s: float = 30.0
    answer_s: float = 600.0


@dataclass(frozen=True)
class Slowdown:
    """How much slower than this machine the imitated device is; 1 for this machine itself."""

    encoders: float = 1.0
    llm: float = 1.0
