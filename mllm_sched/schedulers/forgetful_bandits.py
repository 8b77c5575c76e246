"""Bandits for a world that changes, each arm for itself: the last tasks, discounts, adversaries."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.bandits import UCB, CostStatistics
from mllm_sched.schedulers.base import Indices
from mllm_sched.schedulers.decision import Choice
from mllm_sched.schedulers.incomplete import Values


class SlidingWindowUCB(UCB):
    """UCB1 on the last tasks only (Garivier and Moulines, ALT 2011).

    Parameters
    ----------
    window
        How many tasks count. An arm that was not tried within them is tried again.
    """

    name: ClassVar[str] = "sliding-window-ucb"
    STATE: ClassVar[tuple[str, ...]] = ("_cells", "_logs", "_beyond_then", "_place")

    def __init__(self, space: ArmSpace, *, window: int = 500, **common: Any) -> None:
        super().__init__(space, **common)
        if not window >= 1:
            raise ValueError(f"window={window}: expected 1 or more")
        self.window = window
        self._cells = np.full(window, -1)
        self._logs = np.zeros(window)
        self._beyond_then = np.zeros(window)  # against the limits as they are now
        self._place = 0

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._drop_oldest()
        log_value, beyond = math.log(values[self.objective]), self._is_beyond(values)
        self._cells[self._place], self._logs[self._place] = cell, log_value
        self._beyond_then[self._place] = beyond
        self._place = (self._place + 1) % self.window
        self._count(cell, log_value, beyond)

    def _drop_oldest(self) -> None:
        old = int(self._cells[self._place])
        if old < 0:
            return
        self.counts[old] -= 1
        self.totals[old] -= self._logs[self._place]
        if self.checked[old] > self.counts[old]:  # else it was told before the limits changed
            self.checked[old] -= 1
            self.beyond[old] -= self._beyond_then[self._place]
        if self.counts[old] == 0:
            self.totals[old] = 0.0  # without what rounding left

    def _limits_changed(self) -> None:
        super()._limits_changed()
        self._beyond_then[:] = 0.0


class DiscountedUCB(UCB):
    """UCB1 on counts that fade (Kocsis and Szepesvari 2006; Garivier and Moulines, ALT 2011).

    Parameters
    ----------
    discount
        What is left of a measurement after each task, within (0, 1].
    """

    name: ClassVar[str] = "discounted-ucb"

    def __init__(self, space: ArmSpace, *, discount: float = 0.998, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 < discount <= 1:
            raise ValueError(f"discount={discount}: expected within (0, 1]")
        self.discount = discount

    def _learn(self, cell: int, values: Values, now: float) -> None:
        for statistic in (self.counts, self.totals, self.checked, self.beyond):
            statistic *= self.discount
        super()._learn(cell, values, now)


class EXP3(CostStatistics):
    """EXP3 (Auer et al., SIAM Journal on Computing 2002), which assumes nothing of the costs.

    Costs are scaled to [0, 1] by the least and greatest seen so far.

    Parameters
    ----------
    exploration
        Share of tasks drawn evenly, within (0, 1]; the learning rate as well.
    """

    name: ClassVar[str] = "exp3"
    STATE: ClassVar[tuple[str, ...]] = ("_log_weights", "_probability", "_least", "_most")

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 < exploration <= 1:
            raise ValueError(f"exploration={exploration}: expected within (0, 1]")
        self.exploration = exploration
        self._log_weights = np.zeros(self.cells)
        self._probability = np.ones(self.cells)  # with which each cell was last drawn
        self._least, self._most = math.inf, -math.inf

    def _choose(self, cells: Indices, now: float) -> Choice:
        weights = np.exp(self._log_weights[cells] - self._log_weights[cells].max())
        even = self.exploration / len(cells)
        shares = (1.0 - self.exploration) * weights / weights.sum() + even
        position = int(self.rng.choice(len(cells), p=shares / shares.sum()))
        self._probability[cells[position]] = shares[position]
        return Choice(int(cells[position]), "drawn by weight", infeasible=self.hopeless(cells))

    def _learn(self, cell: int, values: Values, now: float) -> None:
        super()._learn(cell, values, now)
        cost = math.log(values[self.objective]) + self.penalty * self._is_beyond(values)
        self._least, self._most = min(self._least, cost), max(self._most, cost)
        spread = max(self._most - self._least, 1e-12)
        reward = (self._most - cost) / spread
        self._log_weights[cell] += (
            self.exploration * reward / (self._probability[cell] * len(self.space))
        )
