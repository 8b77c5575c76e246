"""The queue in front of a device: fair between users, by deadline within a user, bounded.

Between users it is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing: A
Scheduling Algorithm for Integrated Services Packet Switching Networks", SIGCOMM 1996), with seconds
of encoding in the place of bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from sortedcontainers import SortedList

Due = tuple[float, int, "Entry"]  # deadline and number of arrival, so that no two are equal


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
        Seconds of encoding it is expected to take.
    item
        What the caller wants to find in it.
    weight
        The user's share: a user of weight 2 gets twice the seconds of one of weight 1.

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

    def __post_init__(self) -> None:
        for name in ("cost_s", "weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number above 0")
        if math.isnan(self.ends_s):
            raise ValueError("ends_s=nan: expected a time, or inf for no deadline")

    @property
    def share_s(self) -> float:
        """Seconds by which its user's turn moves on: its cost over its weight."""
        return self.cost_s / self.weight


class QueueFull(Exception):
    """There is no place for one more entry; ``own`` says whether its user has too many itself."""

    def __init__(self, message: str, *, own: bool) -> None:
        super().__init__(message)
        self.own = own


class _Line:
    """What waits of one user, by deadline, and the virtual time at which its next task starts."""

    def __init__(self, user: str, start: float) -> None:
        self.user, self.start = user, start
        self.entries: list[Due] = []  # short, since the number per user is bounded
        self.share_s = 0.0  # of all entries
        self.listed: dict[Hashable, tuple] = {}  # its key in each order of the queue

    def add(self, due: Due) -> None:
        insort(self.entries, due)
        self.share_s += due[2].share_s

    def pop(self, place: int) -> Due:
        due = self.entries.pop(place)
        self.share_s = self.share_s - due[2].share_s if self.entries else 0.0  # no rounding is left
        return due

    def keys(self, virtual_s: float) -> dict[Hashable, tuple]:
        """Where the queue finds the line, by order."""
        if not self.entries:
            return {"idle": (self.start, self.user)} if self.start > virtual_s else {}
        ends_s, number, first = self.entries[0]
        keys: dict[Hashable, tuple] = {"turns": (self.start, ends_s, number, self.user)}
        if first.kind is not None:
            keys["kind", first.kind] = keys["turns"]
        if len(self.entries) > 1:
            ends_s, number, last = self.entries[-1]
            keys["heavy"] = (self.share_s - last.share_s, ends_s, number, self.user)
        return keys


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
        self.backlog_s = 0.0  # predicted seconds of encoding that wait
        self._virtual_s = 0.0  # turn of the entry that was taken last
        self._busy_until_s = -math.inf  # as predicted, of what was taken
        self._arrivals = 0
        self._lines: dict[str, _Line] = {}
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
        self._add(line, (entry.ends_s, self._arrivals, entry))
        self._arrivals += 1
        return pushed_out

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
        self._virtual_s = max(self._virtual_s, turns[0][0])
        taken = [self._next(turns)]
        first, largest = taken[0][1][2], max(sizes)
        furthest = self._virtual_s + largest * first.share_s
        while len(taken) < largest:
            alike = self._orders.get(("kind", first.kind))
            if not alike or alike[0][0] > furthest:
                break
            taken.append(self._next(alike))
        size = max((size for size in sizes if size <= len(taken)), default=1)
        for start, due in reversed(taken[size:]):
            line = self._line(due[2].user)
            line.start = start
            self._add(line, due)
        self._forget()
        entries = [due[2] for _, due in taken[:size]]
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
        line.start += (took_s - entry.cost_s) / entry.weight
        self._busy_until_s += took_s - entry.cost_s
        self._list(line)

    def expired(
        self, now_s: float, service_s: Callable[[Entry], float], longest_s: float = math.inf
    ) -> list[Entry]:
        """Remove the entries that cannot be in time any more, even if they were next.

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
        """Predicted seconds of encoding that wait and go before an entry, if no more come.

        Of an entry that does not wait, what would go before it if it came now. What is already
        running is not in it. Batches only make it shorter.
        """
        due = self._due.get(entry, (entry.ends_s, self._arrivals, entry))
        line = self._lines.get(entry.user) or _Line(entry.user, self._virtual_s)
        turn, ahead_s = self._start(line), 0.0
        for other in line.entries[: bisect_left(line.entries, due)]:
            turn, ahead_s = turn + other[2].share_s, ahead_s + other[2].cost_s
        for key in self._orders.get("turns", ()):
            if key[0] > turn:
                break
            if key[3] != entry.user:
                ahead_s += self._before(self._lines[key[3]], turn, due)
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
        if not heavy or heavy[-1][0] <= (line.share_s if line else 0.0):
            raise QueueFull(f"{self.waiting} tasks wait, which is the most", own=False)
        return self._drop(self._lines[heavy[-1][3]], -1)[2]

    def _before(self, line: _Line, turn: float, due: Due) -> float:
        """Seconds of a line's entries that go before that turn and deadline."""
        start, cost_s = self._start(line), 0.0
        for other in line.entries:
            if (start, other) >= (turn, due):
                break
            start, cost_s = start + other[2].share_s, cost_s + other[2].cost_s
        return cost_s

    def _start(self, line: _Line) -> float:
        return line.start if line.entries else max(line.start, self._virtual_s)

    def _line(self, user: str) -> _Line:
        return self._lines.get(user) or self._lines.setdefault(user, _Line(user, self._virtual_s))

    def _next(self, order: SortedList) -> tuple[float, Due]:
        """Take the first entry of an order, and charge its user; with the turn it had."""
        line = self._lines[order[0][3]]
        start = line.start
        line.start += line.entries[0][2].share_s
        return start, self._drop(line, 0)

    def _add(self, line: _Line, due: Due) -> None:
        line.start = self._start(line)
        line.add(due)
        self._due[due[2]] = due
        self._by_deadline.add(due)
        self.backlog_s += due[2].cost_s
        self._list(line)

    def _drop(self, line: _Line, place: int) -> Due:
        due = line.pop(place)
        del self._due[due[2]]
        self._by_deadline.remove(due)
        self.backlog_s = self.backlog_s - due[2].cost_s if self._due else 0.0
        self._list(line)
        return due

    def _list(self, line: _Line) -> None:
        """List a line that changed where it belongs now; one that has nothing to remember goes."""
        old, line.listed = line.listed, line.keys(self._virtual_s)
        for name, key in old.items() - line.listed.items():
            order = self._orders[name]
            order.remove(key)
            if not order:
                del self._orders[name]
        for name, key in line.listed.items() - old.items():
            self._orders.setdefault(name, SortedList()).add(key)
        if not line.listed:
            self._lines.pop(line.user, None)

    def _forget(self) -> None:
        """Idle users whose turn has come have nothing more to remember."""
        while (idle := self._orders.get("idle")) and idle[0][0] <= self._virtual_s:
            self._list(self._lines[idle[0][1]])

    def _rest(self) -> None:
        """All that was taken is done and nothing waits: the next users start as equals."""
        if idle := self._orders.get("idle"):
            self._virtual_s = idle[-1][0]
            self._forget()
