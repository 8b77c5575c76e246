"""The queue in front of a device: fair between users, by deadline within a user, bounded.

Between users it is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing: A
Scheduling Algorithm for Integrated Services Packet Switching Networks", SIGCOMM 1996), with
seconds of encoding in the place of bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sortedcontainers import SortedList


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


class UserQueue:
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


class FairQueue:
    """Waiting entries, bounded, in an order that is fair between users.

    Every user has a turn in virtual time, which moves on by cost / weight with each of its
    entries that is taken; the user whose turn is earliest is next, with the entry of its that has
    the earliest deadline. A user who comes from idleness starts at the present turn and so brings
    no credit along. Ties go to the earlier deadline, then to the earlier arrival.

    Parameters
    ----------
    waiting
        Entries at most.
    per_user
        Entries of one user at most.

    Examples
    --------
    >>> queue = FairQueue()
    >>> for user, ends_s in [("ann", 9.0), ("ann", 8.0), ("ann", 7.0), ("bob", 99.0)]:
    ...     _ = queue.put(Entry(user, None, 0.0, ends_s, cost_s=1.0))
    >>> [(entry.user, entry.ends_s) for entry in (queue.take(0.0)[0] for _ in range(4))]
    [('ann', 7.0), ('bob', 99.0), ('ann', 8.0), ('ann', 9.0)]
    """

    def __init__(self, waiting: int = 64, per_user: int = 16) -> None:
        if min(waiting, per_user) < 1:
            raise ValueError(f"waiting={waiting}, per_user={per_user}: expected 1 or more of each")
        self.waiting, self.per_user = waiting, per_user
        self.backlog_s = 0.0  # predicted seconds that wait
        self._virtual_s = 0.0  # turn of the entry that was taken last
        self._busy_until_s = -math.inf  # as predicted, of what was taken
        self._arrivals = 0
        self._lines: dict[str, UserQueue] = {}
        self._due: dict[Entry, Due] = {}
        self._by_deadline = SortedList()
        self._orders: dict[Hashable, SortedList] = {}  # of lines: turns, each kind, heavy, idle

    def __len__(self) -> int:
        return len(self._due)

    def put(self, entry: Entry) -> Entry | None:
        """Let an entry wait.

        In a full queue, a user with less work waiting than another has beside its last entry takes
        the place of that entry: the one with the latest deadline of the user with the most. So
        a user with nothing waiting finds a place as long as anyone has two.

        Returns
        -------
        Entry or None
            The entry that had to go.

        Raises
        ------
        QueueFull
            If its user has too many waiting, or nobody has to give way to it.
        ValueError
            If it waits already.
        """
        if entry in self._due:
            raise ValueError(f"this entry of {entry.user} waits already")
        if not self and entry.arrived_s >= self._busy_until_s:
            self._rest()
        pushed_out = self._make_room(entry)
        line = self._line(entry.user)
        self._add(line, Due(entry.ends_s, self._arrivals, entry))
        self._arrivals += 1
        return pushed_out

    @property
    def first(self) -> Entry | None:
        """The entry whose turn it is; None if nothing waits."""
        turns = self._orders.get("turns")
        if not turns:
            return None
        first: Entry = self._lines[turns[0].user].entries[0].entry
        return first

    def take(self, now_s: float, sizes: Sequence[int] = (1,)) -> list[Entry]:
        """The entry whose turn it is, with others of its kind; empty if nothing waits.

        Others join in the order of their users' turns, each the first of its user, as long as that
        turn is at most a full batch away; else a user with much of one kind would ride along with
        everybody's. Each user is charged for its own.

        Parameters
        ----------
        now_s
            Now; when it is done follows from the costs.
        sizes
            Sizes of batch that can be run. The largest that can be filled is taken; one can always.
        """
        turns = self._orders.get("turns")
        if not turns:
            return []
        self._virtual_s = max(self._virtual_s, turns[0].at_s)
        taken = [self._next(turns)]
        first, largest = taken[0][1].entry, max(sizes)
        furthest = self._virtual_s + largest * first.share_s
        while len(taken) < largest:
            alike = self._orders.get(("kind", first.kind))
            if not alike or alike[0].at_s > furthest:
                break
            taken.append(self._next(alike))
        size = max((size for size in sizes if size <= len(taken)), default=1)
        for start_s, due in reversed(taken[size:]):
            line = self._line(due.entry.user)
            line.start_s = start_s
            self._add(line, due)
        self._forget()
        entries = [due.entry for _, due in taken[:size]]
        self._busy_until_s = max(self._busy_until_s, now_s) + sum(e.cost_s for e in entries)
        return entries

    def charge(self, entry: Entry, took_s: float) -> None:
        """Correct what its user was charged for a taken entry by the seconds it really took.

        Once for each entry; of a batch, each took its part of the batch's seconds. 0 for an entry
        that was not run.
        """
        if not 0 <= took_s < math.inf:
            raise ValueError(f"took_s={took_s}: expected finite seconds, 0 or more")
        line = self._line(entry.user)
        line.start_s += (took_s - entry.cost_s) / entry.weight
        self._busy_until_s += took_s - entry.cost_s
        self._list(line)

    def expired(
        self, now_s: float, service_s: Callable[[Entry], float], longest_s: float = math.inf
    ) -> list[Entry]:
        """Remove the entries that are not expected to be in time any more, even if they were next.

        Parameters
        ----------
        now_s
            Now.
        service_s
            Seconds from the start of an entry's encoding to the end of its answer, as predicted.
        longest_s
            The longest that ``service_s`` may say; entries due later than that need no look.

        Returns
        -------
        list of Entry
            Those removed, by deadline.
        """
        near = self._by_deadline.irange(None, (now_s + longest_s, math.inf))
        late = [entry for ends_s, _, entry in near if now_s + service_s(entry) > ends_s]
        for entry in late:
            self.remove(entry)
        return late

    def ahead_s(self, entry: Entry) -> float:
        """Predicted seconds that wait and go before an entry, if no more come.

        Of an entry that does not wait, what would go before it if it came now. What is already
        running is not in it. Batches only make it shorter.
        """
        due = self._due.get(entry, Due(entry.ends_s, self._arrivals, entry))
        line = self._lines.get(entry.user) or UserQueue(entry.user, self._virtual_s)
        turn_s, ahead_s = line.start_s, 0.0
        for own in line.entries[: bisect_left(line.entries, due)]:
            turn_s, ahead_s = turn_s + own.entry.share_s, ahead_s + own.entry.cost_s
        for other in self._orders.get("turns", ()):
            if other.at_s > turn_s:
                break
            if other.user != entry.user:
                ahead_s += self._lines[other.user].before(turn_s, due)
        return ahead_s

    def remove(self, entry: Entry) -> bool:
        """Take an entry out that will not be run, uncharged; False if it does not wait."""
        due = self._due.get(entry)
        if due is None:
            return False
        line = self._lines[entry.user]
        self._drop(line, bisect_left(line.entries, due))
        return True

    def _make_room(self, entry: Entry) -> Entry | None:
        line = self._lines.get(entry.user)
        if line and len(line.entries) >= self.per_user:
            message = f"{self.per_user} of your tasks wait, which is the most"
            raise QueueFull(message, own=True)
        if len(self) < self.waiting:
            return None
        heavy = self._orders.get("heavy")
        if not heavy or heavy[-1].at_s <= (line.share_s if line else 0.0):
            raise QueueFull(f"{self.waiting} tasks wait, which is the most", own=False)
        return self._drop(self._lines[heavy[-1].user], -1).entry

    def _line(self, user: str) -> UserQueue:
        return self._lines.get(user) or self._lines.setdefault(
            user, UserQueue(user, self._virtual_s)
        )

    def _next(self, order: SortedList) -> tuple[float, Due]:
        """Take the first entry of an order, and charge its user; with the turn it had."""
        line = self._lines[order[0].user]
        start_s = line.start_s
        line.start_s += line.entries[0].entry.share_s
        return start_s, self._drop(line, 0)

    def _add(self, line: UserQueue, due: Due) -> None:
        line.add(due)
        self._due[due.entry] = due
        self._by_deadline.add(due)
        self.backlog_s += due.entry.cost_s
        self._list(line)

    def _drop(self, line: UserQueue, index: int) -> Due:
        due = line.pop(index)
        del self._due[due.entry]
        self._by_deadline.remove(due)
        self.backlog_s = self.backlog_s - due.entry.cost_s if self._due else 0.0
        self._list(line)
        return due

    def _list(self, line: UserQueue) -> None:
        """List a line that changed where it belongs now; one that has nothing to remember goes."""
        old, line.listed = line.listed, line.places(self._virtual_s)
        for name, place in old.items() - line.listed.items():
            order = self._orders[name]
            order.remove(place)
            if not order:
                del self._orders[name]
        for name, place in line.listed.items() - old.items():
            self._orders.setdefault(name, SortedList()).add(place)
        if not line.listed:
            self._lines.pop(line.user, None)

    def _forget(self) -> None:
        """Idle users whose turn has come have nothing more to remember."""
        while (idle := self._orders.get("idle")) and idle[0].at_s <= self._virtual_s:
            self._list(self._lines[idle[0].user])

    def _rest(self) -> None:
        """All that was taken is done and nothing waits: the next users start as equals."""
        if idle := self._orders.get("idle"):
            self._virtual_s = idle[-1].at_s
            self._forget()
