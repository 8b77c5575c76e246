"""What a scheduler is compared to: the best possible arm, any arm, always the same arm.

``truly_best`` says which arm is the best, for the oracle and for all that is judged against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.schedulers.base import (
    Array,
    Decision,
    Indices,
    LogBounds,
    Mask,
    Scheduler,
    Values,
)

Truth = Mapping[str, ArrayLike]


def truly_best(
    values: Mapping[str, ArrayLike], objective: str, limits: Mapping[str, float]
) -> tuple[int, bool]:
    """The arm of least objective within the limits, and whether there is one.

    If no arm meets them, it is the one of the least excess: the largest ratio of a quantity to its
    limit. Ties break to the first arm; NaN counts as infinite, and an arm of infinite objective
    violates every limit. ``values`` are true means of every quantity, each of shape (arms,).
    """
    cost, excess = np.asarray(values[objective], dtype=np.float64), np.zeros(())
    for name, limit in limits.items():
        excess = np.maximum(excess, np.asarray(values[name], dtype=np.float64) / limit)
    excess = np.where(np.isfinite(excess + cost), excess, np.inf)  # such an arm cannot run
    within = excess <= 1.0
    if not within.any():
        return int(excess.argmin()), False
    return int(np.where(within, cost, np.inf).argmin()), True


class Oracle(Scheduler):
    """The arm of least true objective among those truly within the limits; see ``truly_best``.

    ``truth`` holds the true mean of every quantity over the cells, each of shape (cells,); or it is
    a function that returns them, if they change.
    """

    name: ClassVar[str] = "oracle"

    def __init__(
        self, space: ArmSpace, *, truth: Truth | Callable[[], Truth] | None = None, **common: Any
    ) -> None:
        super().__init__(space, **common)
        if truth is None:
            raise ValueError(
                "oracle: give truth={'energy_j': ..., 'latency_s': ...}, the true means; "
                "only a simulated or replayed device knows them"
            )
        self.truth = truth

    def _choose(self, cells: Indices, now: float) -> Decision:
        values = {name: value[cells] for name, value in self._true_means().items()}
        best, met = truly_best(values, self.objective, self.limits)
        reason = "truly best" if met else "truly least beyond the limits"
        return self._decision(int(cells[best]), reason, certified=met, infeasible=not met)

    def _true_means(self) -> dict[str, Array]:
        truth = self.truth() if callable(self.truth) else self.truth
        return {name: np.asarray(truth[name], dtype=np.float64) for name in self.quantities}

    def _believed(self, cells: Indices) -> LogBounds:
        return {q: (np.log(value[cells]),) * 2 for q, value in self._true_means().items()}

    def _certified_cells(self) -> Mask:
        means = self._true_means()
        return np.logical_and.reduce([means[q] <= limit for q, limit in self.limits.items()])

    def _learn(self, cell: int, values: Values, now: float) -> None:
        """The oracle knows already."""


class Random(Scheduler):
    """Any arm, each as likely."""

    name: ClassVar[str] = "random"

    def _choose(self, cells: Indices, now: float) -> Decision:
        return self._decision(int(cells[self.rng.integers(len(cells))]), "uniform random")

    def _learn(self, cell: int, values: Values, now: float) -> None:
        """Nothing is learned."""


class Fixed(Scheduler):
    """Always the same arm, by default the first seed; the first available one where it is not."""

    name: ClassVar[str] = "fixed"

    def __init__(self, space: ArmSpace, *, arm: Arm | None = None, **common: Any) -> None:
        super().__init__(space, **common)
        if arm is None and not len(self.seeds):
            raise ValueError("fixed: give arm=..., or a seed arm")
        self.arm = space[int(self.seeds[0])] if arm is None else space[space.index(arm)]

    def _choose(self, cells: Indices, now: float) -> Decision:
        mine = cells[cells % len(self.space) == self.arm.index]
        if len(mine):
            return self._decision(int(mine[0]), "fixed")
        return self._decision(int(cells[0]), "the fixed arm is not available")

    def _learn(self, cell: int, values: Values, now: float) -> None:
        """Nothing is learned."""
