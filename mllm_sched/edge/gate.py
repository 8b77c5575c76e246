"""How much each user may ask: requests a second, requests at once, open calls, and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.users import User


class OpenCalls:
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


class HeldBytes:
    """A bound on what is held at once.

    A user may hold at most as much as then stays free: one alone half of it, two a third each, and
    there is always something left for one who comes later.

    Parameters
    ----------
    limit
        Bytes in all.

    Examples
    --------
    >>> held = HeldBytes(100)
    >>> held.take("ann", 40), held.take("ann", 20), held.take("bob", 30)
    (True, False, True)
    >>> held.give("ann", 40)
    >>> held.take("bob", 5), held.total
    (True, 35)
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_user: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes held now."""
        return self._by_user.total()

    def take(self, user: str, size: int) -> bool:
        """Hold so many more bytes for a user, if there is room for that."""
        if self._by_user[user] + size > self.limit - self.total - size:
            return False
        self._by_user[user] += size
        return True

    def give(self, user: str, size: int) -> None:
        """So many bytes of a user are held no longer."""
        self._by_user[user] -= size
        if not self._by_user[user]:
            del self._by_user[user]


_ROUNDING_S = 1e-6  # of sums of clock readings


@dataclass
class _Pass:
    """A user's requests under way, and when its bucket of tokens is full again."""

    inside: int = 0
    full_s: float = -math.inf


class Gate:
    """Turns away users who send too many requests.

    The rate is a token bucket, kept as the time at which it is full again (the generic cell rate
    algorithm, ITU-T I.371). Users whose bucket is full and who have no request under way are
    forgotten.

    Examples
    --------
    >>> gate, user = Gate(), User("ann", rate_hz=2.0, burst=1)
    >>> gate.enter(user, 0.0)
    >>> gate.enter(user, 0.25)
    Traceback (most recent call last):
    mllm_sched.edge.refusals.Refusal: rate: 2 requests a second are allowed; ask again in 0.25 s
    >>> gate.enter(user, 0.5)
    """

    def __init__(self) -> None:
        self._passes: dict[str, _Pass] = {}

    def __len__(self) -> int:
        return len(self._passes)

    def enter(self, user: User, now_s: float) -> None:
        """One more request of a user; ``leave`` when it is over.

        Parameters
        ----------
        now_s
            On a clock that never steps back.

        Raises
        ------
        Refusal
            ``at-once`` or ``rate``; the request then counts for nothing.
        """
        self._forget(now_s)
        one = self._passes.get(user.name, _Pass())
        if one.inside >= user.at_once:
            message = f"{user.at_once} of your requests are under way, which is the most"
            raise Refusal("at-once", f"{message}; wait for an answer")
        early_s = one.full_s - (user.burst - 1) / user.rate_hz - now_s
        if early_s > _ROUNDING_S:
            raise Refusal(
                "rate", f"{user.rate_hz:g} requests a second are allowed", retry_s=early_s
            )
        one.inside += 1
        one.full_s = max(one.full_s, now_s) + 1 / user.rate_hz
        self._passes[user.name] = one

    def leave(self, user: User) -> None:
        """A request that entered is over."""
        one = self._passes.get(user.name)
        if one is None or not one.inside:
            raise ValueError(f"{user.name} has no request under way")
        one.inside -= 1

    def _forget(self, now_s: float) -> None:
        """Look at two users in turn: more than may have come since, so that all have theirs."""
        for name in list(islice(self._passes, 2)):
            one = self._passes.pop(name)
            if one.inside or one.full_s > now_s:
                self._passes[name] = one
