"""How much each user may ask: so many requests a second, and so many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.users import User

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
