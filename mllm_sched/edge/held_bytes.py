"""Memory that requests may take, shared so that no user takes all of it."""

from __future__ import annotations

from collections import Counter


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
