"""Settings of a front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from mllm_sched.edge.config import Address, Asked, Count, Listening
from mllm_sched.pipeline.options import MESSAGE_BYTES


class FrontConfig(Listening):
    """A front. Agents beyond this machine need ``tls`` as well, unless it is ``open``.

    Attributes
    ----------
    agents
        Every edge agent.
    poll_s
        Between two questions to an agent how it is.
    at_once
        Requests served at a time.
    held_bytes
        That all requests together may take until they are answered.
    message_bytes
        Of one request, at most half of that.
    """

    listen: Address = "127.0.0.1:50060"
    agents: Annotated[Sequence[Asked], Field(min_length=1)]
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    at_once: Count = 256
    held_bytes: Count = 512 << 20
    message_bytes: Annotated[int, Field(ge=1024)] = MESSAGE_BYTES

    @model_validator(mode="after")
    def _agents_can_be_used(self) -> Self:
        if twice := sorted({one for one in self.agents if list(self.agents).count(one) > 1}):
            raise ValueError(f"agents: {', '.join(twice)} stands there twice")
        return self

    @model_validator(mode="after")
    def _a_request_has_room(self) -> Self:
        if 2 * self.message_bytes > self.held_bytes:
            raise ValueError(
                f"message_bytes={self.message_bytes}: expected at most half of "
                f"held_bytes={self.held_bytes}"
            )
        return self
