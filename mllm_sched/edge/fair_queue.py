"""The queue in front of a device: fair between users, by deadline within a user, bounded.

Between users it is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing: A
Scheduling Algorithm for Integrated Services Packet Switching Networks", SIGCOMM 1996), with
seconds of encoding in the place of bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, eq=False)
class Entry:
    """A task that waits to be encoded; its times are on the clock of the queue's caller."""

    user: str
    kind: Hashable  # those of equal kind may be encoded as one batch; None is never batched
    arrived_s: float
    ends_s: float  # its deadline; ``inf`` if it has none
    cost_s: float  # predicted, of the scarcest resource; above 0
    item: Any = None  # the caller's own
    weight: float = 1.0  # a user of weight 2 gets twice the seconds of one of weight 1

    @property
    def share_s(self) -> float:
        """Virtual time of the entry: its cost over its user's weight."""
        return self.cost_s / self.weight


class QueueFull(Exception):
    """There is no place for one more entry."""


class Due(NamedTuple):
    """An entry by its deadline; the number of its arrival decides between equal ones."""

    ends_s: float
    number: int
    entry: Entry


@dataclass(eq=False)
class UserQueue:
    """Entries of one user by deadline, and the virtual time at which the first of them starts."""

    start_s: float
    entries: list[Due] = field(default_factory=list)
    share_s: float = 0.0  # of all entries

    def add(self, due: Due) -> None:
        """Insert an entry by its deadline."""
        insort(self.entries, due)
        self.share_s += due.entry.share_s

    def pop(self, index: int) -> Due:
        """Remove an entry; 0 is the earliest deadline, -1 the latest."""
        due = self.entries.pop(index)
        self.share_s = self.share_s - due.entry.share_s if self.entries else 0.0  # rounding ends
        return due

    def turn(self) -> tuple[float, float, int]:
        """Its place in the order of users: virtual start, then deadline and number of its first."""
        return self.start_s, self.entries[0].ends_s, self.entries[0].number

    def heaviness(self) -> tuple[float, float, int]:
        """Its place in the order of who gives way: work beside its last entry, then that entry."""
        last = self.entries[-1]
        return self.share_s - last.entry.share_s, last.ends_s, last.number

    def cost_before(self, turn_s: float, due: Due) -> float:
        """Cost of its entries that start before that turn, or at it with an earlier deadline."""
        start_s, cost_s = self.start_s, 0.0
        for other in self.entries:
            if (start_s, other) >= (turn_s, due):
                break
            start_s, cost_s = start_s + other.entry.share_s, cost_s + other.entry.cost_s
        return cost_s


class FairQueue:
    """Waiting entries, bounded, in an order that is fair between users.

    Every user has a start in virtual time, which moves on by cost / weight with each of its entries
    that is taken. The user with the earliest start is next, with its entry of the earliest
    deadline. A user who was idle starts at the present virtual time, so it has no credit. Ties go
    to the earlier deadline, then to the earlier arrival.

    At most ``waiting`` entries wait, ``per_user`` of one user. Operations take time in proportion
    to the number of users who wait.

    Examples
    --------
    >>> queue = FairQueue()
    >>> for user, ends_s in [("ann", 9.0), ("ann", 8.0), ("ann", 7.0), ("bob", 99.0)]:
    ...     _ = queue.put(Entry(user, None, 0.0, ends_s, cost_s=1.0))
    >>> [(entry.user, entry.ends_s) for entry in (queue.take(0.0)[0] for _ in range(4))]
    [('ann', 7.0), ('bob', 99.0), ('ann', 8.0), ('ann', 9.0)]
    """

    def __init__(self, waiting: int = 64, per_user: int = 16) -> None:
        self.waiting, self.per_user = waiting, per_user
        self._virtual_s = 0.0  # start of the entry that was taken last
        self._busy_until_s = -math.inf  # as predicted, of what was taken
        self._arrivals = 0
        self._due: dict[Entry, Due] = {}
        self._users: dict[str, UserQueue] = {}  # with entries, or a start that is still to come

    def __len__(self) -> int:
        return len(self._due)

    @property
    def backlog_s(self) -> float:
        """Predicted seconds that wait."""
        return sum(entry.cost_s for entry in self._due)

    @property
    def first(self) -> Entry | None:
        """The entry that is next; None if nothing waits."""
        waiting = self._waiting()
        return min(waiting, key=UserQueue.turn).entries[0].entry if waiting else None

    def put(self, entry: Entry) -> Entry | None:
        """Let an entry wait.

        In a full queue, a user with less work waiting than another has beside its last entry takes
        the place of that entry: the one with the latest deadline of the user with the most. So
        a user with nothing waiting finds a place as long as anyone has two.

        Returns the entry that had to go, if any. Raises QueueFull if its user has too many waiting,
        or nobody has to give way to it.
        """
        if not self and entry.arrived_s >= self._busy_until_s:
            # All work is done: the next users start as equals.
            starts_s = [user.start_s for user in self._users.values()]
            self._virtual_s = max([self._virtual_s, *starts_s])
            self._users.clear()
        pushed_out = self._make_room(entry)
        self._add(self._user(entry.user), Due(entry.ends_s, self._arrivals, entry))
        self._arrivals += 1
        return pushed_out

    def take(self, now_s: float, sizes: Sequence[int] = (1,)) -> list[Entry]:
        """The entry that is next, with others of its kind; empty if nothing waits.

        Others join in the order of their users, each the first of its user, as long as its start is
        at most a full batch away; else a user with much of one kind would ride along with
        everybody's. Each user is charged for its own.

        ``sizes`` are those of batches that can be run. The largest that can be filled is taken; one
        can always.
        """
        candidates = self._waiting()
        if not candidates:
            return []
        taken: list[tuple[UserQueue, float, Due]] = []  # with the start of before
        largest = max(sizes)
        while candidates and len(taken) < max(largest, 1):
            user = min(candidates, key=UserQueue.turn)
            if not taken:
                self._virtual_s = max(self._virtual_s, user.start_s)
                furthest_s = self._virtual_s + largest * user.entries[0].entry.share_s
            elif user.start_s > furthest_s:
                break
            start_s = user.start_s
            user.start_s += user.entries[0].entry.share_s
            taken.append((user, start_s, self._drop(user, 0)))
            kind = taken[0][2].entry.kind
            candidates = [] if kind is None else self._waiting(kind)
        size = max((size for size in sizes if size <= len(taken)), default=1)
        for user, start_s, due in reversed(taken[size:]):
            user.start_s = start_s
            self._add(user, due)
        self._users = {
            name: user
            for name, user in self._users.items()
            if user.entries or user.start_s > self._virtual_s
        }
        entries = [due.entry for _, _, due in taken[:size]]
        self._busy_until_s = max(self._busy_until_s, now_s) + sum(e.cost_s for e in entries)
        return entries

    def charge(self, entry: Entry, took_s: float) -> None:
        """Correct the charge of a taken entry by the seconds it really took.

        Once for each entry; of a batch, each took its part of the batch's seconds.
        """
        self._user(entry.user).start_s += (took_s - entry.cost_s) / entry.weight
        self._busy_until_s += took_s - entry.cost_s

    def expired(self, now_s: float, service_s: Callable[[Entry], float]) -> list[Entry]:
        """Remove the entries that would be late even if they were next; returned by deadline.

        ``service_s`` predicts the seconds from the start of an entry's encoding to the end of its
        answer.
        """
        waiting = sorted(self._due.values())
        late = [entry for ends_s, _, entry in waiting if now_s + service_s(entry) > ends_s]
        for entry in late:
            self.remove(entry)
        return late

    def ahead_s(self, entry: Entry) -> float:
        """Predicted seconds that wait and go before an entry, if no more come.

        Of an entry that does not wait, what would go before it if it came now. What is already
        running is not included. Batches only make it shorter.
        """
        due = self._due.get(entry, Due(entry.ends_s, self._arrivals, entry))
        own = self._users.get(entry.user) or UserQueue(self._virtual_s)
        turn_s, ahead_s = own.start_s, 0.0
        if not own.entries:
            turn_s = max(turn_s, self._virtual_s)
        for before in own.entries[: bisect_left(own.entries, due)]:
            turn_s, ahead_s = turn_s + before.entry.share_s, ahead_s + before.entry.cost_s
        others = [user for user in self._waiting() if user is not own and user.start_s <= turn_s]
        for other in sorted(others, key=UserQueue.turn):
            ahead_s += other.cost_before(turn_s, due)
        return ahead_s

    def remove(self, entry: Entry) -> None:
        """Take an entry out that will not be run, uncharged; nothing if it does not wait."""
        if due := self._due.get(entry):
            user = self._users[entry.user]
            self._drop(user, bisect_left(user.entries, due))

    def _make_room(self, entry: Entry) -> Entry | None:
        own = self._users.get(entry.user)
        if own and len(own.entries) >= self.per_user:
            raise QueueFull(f"{self.per_user} of your tasks wait, which is the most")
        if len(self) < self.waiting:
            return None
        several = [user for user in self._waiting() if len(user.entries) > 1]
        heaviest = max(several, key=UserQueue.heaviness, default=None)
        if heaviest is None or heaviest.heaviness()[0] <= (own.share_s if own else 0.0):
            raise QueueFull(f"{self.waiting} tasks wait, which is the most")
        return self._drop(heaviest, -1).entry

    def _user(self, name: str) -> UserQueue:
        user = self._users.setdefault(name, UserQueue(self._virtual_s))
        if not user.entries:
            user.start_s = max(user.start_s, self._virtual_s)
        return user

    def _waiting(self, kind: Hashable = None) -> list[UserQueue]:
        """Users with entries, or with a first entry of that kind."""
        users = [user for user in self._users.values() if user.entries]
        return users if kind is None else [u for u in users if u.entries[0].entry.kind == kind]

    def _add(self, user: UserQueue, due: Due) -> None:
        user.add(due)
        self._due[due.entry] = due

    def _drop(self, user: UserQueue, index: int) -> Due:
        due = user.pop(index)
        del self._due[due.entry]
        return due
