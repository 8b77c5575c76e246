"""The paper's baselines: UCB, Thompson sampling and epsilon-greedy, each arm for itself.

They minimise one cost, on the same logarithmic scale as the Gaussian processes:

    mean log energy  +  penalty x share of tasks beyond a limit

Without a penalty it knows nothing of the limits. Every arm is tried once, in order, before any is
tried twice.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices, Scheduler
from mllm_sched.schedulers.beliefs import Bounds
from mllm_sched.schedulers.decision import Choice, least
from mllm_sched.schedulers.incomplete import Values

Array = NDArray[np.float64]


class CostStatistics(Scheduler):
    """What was told of every cell, as a cost.

    Parameters
    ----------
    penalty
        Cost of a task beyond a limit, in log energy: 1 makes it count as e times its energy.
        0: energy alone.

    Notes
    -----
    After a change of limits, shares of tasks beyond them begin anew. The verdict that no arm can
    meet the limits is given when every arm was tried and none ever met them; the choice is then as
    always.
    """

    STATE: ClassVar[tuple[str, ...]] = ("counts", "totals", "checked", "beyond")

    def __init__(self, space: ArmSpace, *, penalty: float = 0.0, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty={penalty}: expected 0 or more")
        self.penalty = penalty
        self.counts = np.zeros(self.cells)
        self.totals = np.zeros(self.cells)  # of log energy
        self.checked = np.zeros(self.cells)  # against the limits as they are now
        self.beyond = np.zeros(self.cells)

    def costs(self) -> Array:
        """Mean cost of every cell, shape (cells,); of one without a result, the mean of all."""
        means = self.totals / np.maximum(self.counts, 1e-12)
        if self.penalty:
            means += self.penalty * self.beyond / np.maximum(self.checked, 1e-12)
        unknown = self.counts == 0
        if unknown.any():
            means[unknown] = 0.0 if unknown.all() else means[~unknown].mean()
        return means

    def _believed(self, cells: Indices) -> Bounds:
        told = self.counts[cells]
        means = np.where(told > 0, self.totals[cells] / np.maximum(told, 1e-12), np.nan)
        spread = self._spread(cells)
        return {self.objective: (means - spread, means + spread)}

    def _spread(self, cells: Indices) -> Array | float:
        """How far a mean cost may be off, as far as the rule reckons with it."""
        return 0.0

    def hopeless(self, cells: Indices) -> bool:
        """Whether each of these cells was tried and was always beyond a limit."""
        beyond = self.beyond[cells]
        return bool(beyond.all() and (beyond == self.checked[cells]).all())

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._count(cell, math.log(values[self.objective]), self._is_beyond(values))

    def _is_beyond(self, values: Values) -> bool:
        return any(values[name] > limit for name, limit in self.limits.items())

    def _count(self, cell: int, log_value: float, beyond: bool) -> None:
        self.counts[cell] += 1
        self.totals[cell] += log_value
        self.checked[cell] += 1
        self.beyond[cell] += beyond

    def _limits_changed(self) -> None:
        self.checked[:] = 0.0
        self.beyond[:] = 0.0


class CostBandit(CostStatistics):
    """Every arm is tried once; then a rule picks by mean costs.

    An arm that is still running counts as tried.
    """

    def _choose(self, cells: Indices, now: float) -> Choice:
        counts = self.counts[cells]
        if len(running := self._running()):
            counts = counts + np.bincount(running, minlength=self.cells)[cells]
        fewest = int(counts.argmin())
        if counts[fewest] == 0:
            return Choice(int(cells[fewest]), "not tried yet")
        position, reason = self._pick(counts, self.costs()[cells])
        return Choice(int(cells[position]), reason, infeasible=self.hopeless(cells))

    @abstractmethod
    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        """Position to play, and why, from trials and mean costs, each of shape (cells,)."""


class UCB(CostBandit):
    """UCB1 (Auer, Cesa-Bianchi and Fischer, Machine Learning 2002).

    Parameters
    ----------
    exploration
        Factor on the confidence term sqrt(2 ln t / n). The textbook's 1 is for rewards that fill
        [0, 1] with noise; here it plays dozens of arms almost evenly for 1000 tasks. Measurements
        scatter by some percent, so the default is 0.1, which favours this baseline.
    """

    name: ClassVar[str] = "ucb"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        self.exploration = _checked_exploration(exploration)

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        return least(costs - self._bonus(counts)), "least cost bound"

    def _spread(self, cells: Indices) -> Array:
        return self._bonus(np.maximum(self.counts[cells], 1e-12))

    def _bonus(self, counts: Array) -> Array:
        bonus: Array = np.sqrt(2.0 * math.log(max(counts.sum(), 1.0)) / counts)
        return self.exploration * bonus


class Thompson(CostBandit):
    """Gaussian Thompson sampling (Agrawal and Goyal, AISTATS 2013).

    Parameters
    ----------
    exploration
        Standard deviation of one cost in the sampling distribution N(mean, sd^2 / (n + 1)). The
        textbook has 1; see ``UCB`` for the default.
    """

    name: ClassVar[str] = "thompson"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        self.exploration = _checked_exploration(exploration)

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        draws = self.rng.standard_normal(len(costs)) / np.sqrt(counts + 1.0)
        return least(costs + self.exploration * draws), "least sampled cost"

    def _spread(self, cells: Indices) -> Array:
        return self.exploration / np.sqrt(self.counts[cells] + 1.0)


class EpsilonGreedy(CostBandit):
    """The arm of least mean cost, but any arm with probability epsilon.

    Parameters
    ----------
    epsilon
        Share of tasks spent on an arm drawn evenly, within [0, 1].
    """

    name: ClassVar[str] = "epsilon-greedy"

    def __init__(self, space: ArmSpace, *, epsilon: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon={epsilon}: expected within [0, 1]")
        self.epsilon = epsilon

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(costs))), "drawn evenly"
        return least(costs), "least mean cost"


def _checked_exploration(exploration: float) -> float:
    if not 0 <= exploration < math.inf:
        raise ValueError(f"exploration={exploration}: expected 0 or more")
    return exploration
