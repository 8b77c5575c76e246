"""Requests on their way through the encoder, one item after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.edge.admission import LetIn
from mllm_sched.edge.closed_loop import EncodedJob, EncodingJob
from mllm_sched.edge.runtime import Prepared
from mllm_sched.edge.service import now_s
from mllm_sched.edge.users import User
from mllm_sched.pipeline.jobs import Job


@dataclass(eq=False)
class Pending:
    """A request.

    Attributes
    ----------
    task
        Its key in the journal.
    prepared
        Its items; none if it is text alone.
    job
        Its answer, which is worth making as long as anyone waits for it.
    came_s
        When it came.
    ahead_s
        Seconds that what went before it was predicted to take.
    let_in
        Why it was.
    queued_s
        How long it waited for the encoder.
    free_s
        When its last item was done, so that it waits again.
    done
        What became of its items so far.
    encoded
        All of them, in the end.
    """

    task: str
    user: User
    prepared: Sequence[Prepared]
    job: Job
    came_s: float = field(default_factory=now_s)
    ahead_s: float = 0.0
    let_in: LetIn = LetIn.FITS
    queued_s: float = 0.0
    free_s: float = 0.0
    done: list[EncodedJob] = field(default_factory=list, repr=False)
    encoded: asyncio.Future[list[EncodedJob]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), repr=False
    )

    @property
    def ends_s(self) -> float:
        """When the last of those who asked for it stops waiting."""
        return self.job.ends_s

    def hand_out(self, result: Any) -> None:
        """Features, or why there are none, to whoever still waits for them."""
        if self.encoded.done():
            return
        if isinstance(result, Exception):
            self.encoded.set_exception(result)
        else:
            self.encoded.set_result(result)


@dataclass(frozen=True, eq=False)
class Turn:
    """What waits of a request: its item at a place, or only its answer if it has no items."""

    pending: Pending
    place: int = 0

    @property
    def prepared(self) -> Prepared | None:
        """The item."""
        return self.pending.prepared[self.place] if self.pending.prepared else None

    @property
    def rest(self) -> Sequence[Prepared]:
        """Items behind it."""
        return self.pending.prepared[self.place + 1 :]

    def work(self) -> EncodingJob:
        """The item as the loop takes it."""
        pending = self.pending
        assert self.prepared is not None
        name = f"{pending.task}/{self.place}"
        return EncodingJob(name, pending.user.name, self.prepared, pending.ends_s)
