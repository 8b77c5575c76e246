"""Bandits that know the limits, each arm for itself: what one tells of another is not used."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices, Scheduler
from mllm_sched.schedulers.beliefs import Bounds
from mllm_sched.schedulers.decision import Choice, least, within
from mllm_sched.schedulers.incomplete import Values

Array = NDArray[np.float64]


class MeanBandit(Scheduler):
    """Mean log of every quantity of every cell; a failed run counts as twice every limit."""

    STATE: ClassVar[tuple[str, ...]] = ("counts", "totals")

    def __init__(self, space: ArmSpace, **common: Any) -> None:
        super().__init__(space, **common)
        self.counts = np.zeros(self.cells)
        self.totals = {quantity: np.zeros(self.cells) for quantity in self.quantities}

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self.counts[cell] += 1
        for quantity, value in values.items():
            self.totals[quantity][cell] += math.log(value)

    def _believed(self, cells: Indices) -> Bounds:
        told = np.maximum(self.counts[cells], 1e-12)
        slack = np.where(self.counts[cells] > 0, self._slack(told), np.nan)
        means = {name: total[cells] / told for name, total in self.totals.items()}
        return {name: (mean - slack, mean + slack) for name, mean in means.items()}

    def _slack(self, counts: Array) -> Array:
        """How far means of so many runs may be off, as far as the rule reckons with it."""
        return np.zeros(len(counts))

    def _trials(self, cells: Indices) -> Array:
        """Runs of each cell, those that are not told yet among them."""
        running = np.bincount(self._running(), minlength=self.cells)
        return self.counts[cells] + running[cells]

    def _best(self, cells: Indices, slack: Array, reason: str) -> Choice:
        """Least mean objective within the limits, every mean lowered by its slack."""
        told = np.flatnonzero(self.counts[cells])
        if not len(told):  # all of them are still running
            return Choice(int(cells[0]), "nothing told yet")
        everyone = len(told) == len(cells)  # else some may yet turn out to be within
        cells, slack, counts = cells[told], slack[told], self.counts[cells[told]]
        low = {name: total[cells] / counts - slack for name, total in self.totals.items()}
        excess = np.max([low[q] - limit for q, limit in self._log_limits.items()], axis=0)
        if not within(excess, 0.0).any():
            reason = "no arm can meet the limits" if everyone else "none told yet meets the limits"
            cell = int(cells[least(excess)])
            return Choice(cell, f"{reason}: least beyond them", infeasible=everyone)
        best = least(np.where(within(excess, 0.0), low[self.objective], np.inf))
        return Choice(int(cells[best]), reason)


class ConstrainedUCB(MeanBandit):
    """UCB on energy and on every limit: least energy bound of the arms that may be feasible.

    Parameters
    ----------
    exploration
        Factor on the confidence term sqrt(2 ln t / n) of logs; see ``UCB``.
    """

    name: ClassVar[str] = "constrained-ucb"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 <= exploration < math.inf:
            raise ValueError(f"exploration={exploration}: expected 0 or more")
        self.exploration = exploration

    def _choose(self, cells: Indices, now: float) -> Choice:
        trials = self._trials(cells)
        if trials.min() == 0:
            return Choice(int(cells[trials.argmin()]), "not tried yet")
        return self._best(cells, self._slack(trials), "least energy bound that may be feasible")

    def _slack(self, counts: Array) -> Array:
        bonus: Array = np.sqrt(2.0 * math.log(max(counts.sum(), 1.0)) / counts)
        return self.exploration * bonus


class ProfileThenCommit(MeanBandit):
    """Every arm some times, in order; then for good the least mean energy within the limits.

    What an engineer would do by hand.

    Parameters
    ----------
    rounds
        Runs of every arm, 1 or more.
    """

    name: ClassVar[str] = "profile-then-commit"

    def __init__(self, space: ArmSpace, *, rounds: int = 2, **common: Any) -> None:
        super().__init__(space, **common)
        if not rounds >= 1:
            raise ValueError(f"rounds={rounds}: expected 1 or more")
        self.rounds = rounds

    def _choose(self, cells: Indices, now: float) -> Choice:
        trials = self._trials(cells)
        if trials.min() < self.rounds:
            return Choice(int(cells[trials.argmin()]), "profiled first")
        return self._best(cells, self._slack(trials), "least mean energy within the limits")

    def _learn(self, cell: int, values: Values, now: float) -> None:
        if self.counts[cell] < self.rounds:  # committed: nothing is learned after
            super()._learn(cell, values, now)
