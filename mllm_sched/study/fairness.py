"""How evenly users are served."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def jain_index(shares: ArrayLike) -> float:
    """Jain's index: 1 if all have the same, 1/n if one of n has everything; NaN for nobody.

    Jain, Chiu and Hawe, DEC-TR-301 (1984).

    Examples
    --------
    >>> jain_index([2, 2, 2]), jain_index([6, 0, 0])
    (1.0, 0.3333333333333333)
    """
    values = np.asarray(shares, dtype=np.float64)
    squares = float(len(values) * (values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else float("nan")


def max_min_share(wanted: ArrayLike, total: float) -> NDArray[np.float64]:
    """The max-min fair split: nobody gets more than wanted, what is left goes to the others evenly.

    Parameters
    ----------
    wanted
        By each user, 0 or more.
    total
        What there is to share; if there is enough, all get what they want.

    Examples
    --------
    >>> max_min_share([1, 5, 20], total=12).tolist()
    [1.0, 5.0, 6.0]
    """
    demand = np.asarray(wanted, dtype=np.float64)
    order = np.argsort(demand, kind="stable")
    given, left = np.zeros(len(demand)), float(total)
    for place, user in enumerate(order):
        given[user] = min(float(demand[user]), left / (len(order) - place))
        left -= given[user]
    return given
