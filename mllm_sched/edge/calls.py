"""Calls that are open, counted so that no user takes all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.users import User


class Calls:
    """Open calls of every user: those that bring a request, and those that follow an answer.

    A caller whose connection broke comes again before the broken call is noticed, so that a user
    may have twice as many as requests, and two more.
    """

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def of(self, user: User) -> Iterator[None]:
        """One more, for the length of the block.

        Raises
        ------
        Refusal
            ``at-once``, if the user has too many.
        """
        if self._open[user.name] >= (most := 2 * user.at_once + 2):
            raise Refusal("at-once", f"{most} calls of {user.name} are open")
        self._open[user.name] += 1
        try:
            yield
        finally:
            self._open[user.name] -= 1
            if not self._open[user.name]:
                del self._open[user.name]
