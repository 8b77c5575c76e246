"""A task that waits to be encoded, and what waits of one user."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, eq=False)
class Entry:
    """A task that waits to be encoded.

    Attributes
    ----------
    user
        Whose it is.
    kind
        Entries of equal kind may be encoded as one batch; None is never batched.
    arrived_s, ends_s
        When it came, and its deadline, on the clock of the queue's caller; no deadline is ``inf``.
    cost_s
        Seconds it is expected to take of what is scarcest.
    item
        What the caller wants to find in it.
    weight
        The user's share: a user of weight 2 gets twice the seconds of one of weight 1.
    encode_s
        Seconds of encoding it is expected to take; ``cost_s`` if that is not given.

    Raises
    ------
    ValueError
        For a cost or weight that is not finite and above 0, or a deadline that is NaN.
    """

    user: str
    kind: Hashable
    arrived_s: float
    ends_s: float
    cost_s: float
    item: Any = None
    weight: float = 1.0
    encode_s: float = math.nan

    def __post_init__(self) -> None:
        for name in ("cost_s", "weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number above 0")
        if math.isnan(self.ends_s):
            raise ValueError("ends_s=nan: expected a time, or inf for no deadline")
        if math.isnan(self.encode_s):
            object.__setattr__(self, "encode_s", self.cost_s)

    @property
    def share_s(self) -> float:
        """Seconds by which its user's turn moves on: its cost over its weight."""
        return self.cost_s / self.weight


class QueueFull(Exception):
    """There is no place for one more entry; ``own`` says whether its user has too many itself."""

    def __init__(self, message: str, *, own: bool) -> None:
        super().__init__(message)
        self.own = own


class Due(NamedTuple):
    """An entry by its deadline; the number of its arrival decides between equal ones."""

    ends_s: float
    number: int
    entry: Entry


class Place(NamedTuple):
    """Where a user stands in an order of the queue: by virtual time or work, then as ``Due``."""

    at_s: float
    ends_s: float
    number: int
    user: str


class Line:
    """What waits of one user, by deadline.

    Attributes
    ----------
    start_s
        Virtual time at which the user's next entry starts.
    share_s
        Of all its entries.
    listed
        Where it stands in each order of the queue.
    """

    def __init__(self, user: str, start_s: float) -> None:
        self.user, self.start_s = user, start_s
        self.entries: list[Due] = []  # short, since the number per user is bounded
        self.share_s = 0.0
        self.listed: dict[Hashable, Place] = {}

    def add(self, due: Due) -> None:
        """One more entry."""
        insort(self.entries, due)
        self.share_s += due.entry.share_s

    def pop(self, index: int) -> Due:
        """One less; 0 is the earliest deadline, -1 the latest."""
        due = self.entries.pop(index)
        self.share_s = self.share_s - due.entry.share_s if self.entries else 0.0  # rounding ends
        return due

    def before(self, turn_s: float, due: Due) -> float:
        """Seconds of its entries that start before that turn, or at it with an earlier deadline."""
        start_s, cost_s = self.start_s, 0.0
        for other in self.entries:
            if (start_s, other) >= (turn_s, due):
                break
            start_s, cost_s = start_s + other.entry.share_s, cost_s + other.entry.cost_s
        return cost_s

    def places(self, virtual_s: float) -> dict[Hashable, Place]:
        """Where it belongs in the orders of the queue, by name of the order; nowhere: forget it.

        ``turns``: whose turn is next; of each kind likewise. ``heavy``: who has most waiting
        beside the entry that would have to go. ``idle``: who has had more than its share by now.
        """
        if not self.entries:
            idle = Place(self.start_s, math.inf, 0, self.user)
            return {"idle": idle} if self.start_s > virtual_s else {}
        first, last = self.entries[0], self.entries[-1]
        turn = Place(self.start_s, first.ends_s, first.number, self.user)
        places: dict[Hashable, Place] = {"turns": turn}
        if first.entry.kind is not None:
            places["kind", first.entry.kind] = turn
        if len(self.entries) > 1:
            beside_s = self.share_s - last.entry.share_s
            places["heavy"] = Place(beside_s, last.ends_s, last.number, self.user)
        return places
