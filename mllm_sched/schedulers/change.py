"""Notices that a quantity is no longer what it was: cumulative sums of deviations, by cell.

Page, Continuous inspection schemes, Biometrika 1954. Deviations are clipped, so that one outlier
proves nothing, however large.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.schedulers.state import Stateful

CLIP = 4.0  # standard deviations
SLACK = 0.75  # of every deviation: changes smaller than twice that are found late or never
ALARM = 6.5  # two of the largest deviations in a row


class ChangeDetector(Stateful):
    """Evidence that quantities became larger, or smaller, on each cell.

    Examples
    --------
    >>> detector = ChangeDetector(["latency_s"], cells=2)
    >>> [detector.changed("latency_s", 0, deviation) for deviation in (9.0, 9.0)]
    [False, True]
    """

    STATE: ClassVar[tuple[str, ...]] = ("_sums",)

    def __init__(self, quantities: Iterable[str], cells: int) -> None:
        self._sums = {name: np.zeros((2, cells)) for name in quantities}

    def changed(self, quantity: str, cell: int, deviation: float) -> bool:
        """Take in a deviation, in standard deviations; whether there is enough evidence now."""
        sums, step = self._sums[quantity], clipped(deviation)
        for side, moved in enumerate((step, -step)):
            sums[side, cell] = max(0.0, sums[side, cell] + moved - SLACK)
        return bool(max(sums[:, cell]) >= ALARM)

    def reset(self, cells: NDArray[np.bool_]) -> None:
        """Begin anew on some cells."""
        for sums in self._sums.values():
            sums[:, cells] = 0.0


def clipped(deviation: float) -> float:
    """A deviation as far as it is believed."""
    return min(max(deviation, -CLIP), CLIP)
