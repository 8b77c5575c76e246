"""The paper's baselines: UCB, Thompson sampling and epsilon-greedy, each arm for itself.

They minimise one cost. Energy alone knows nothing of the limit; with a penalty, the cost is

    mean energy / greatest energy seen  +  penalty x share of tasks beyond a limit

Every arm is tried once, in order, before any is tried twice.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Choice, Indices, Scheduler


class CostBandit(Scheduler):
    """Running means of cost per cell; a rule says how to pick from them.

    Parameters
    ----------
    penalty
        Cost of a task beyond a limit, where 1 is the greatest energy seen. 0: energy alone.
    """

    def __init__(self, space: ArmSpace, *, penalty: float = 0.0, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty={penalty}: expected 0 or more")
        self.penalty = penalty
        self.counts = np.zeros(self.cells)
        self.totals = np.zeros(self.cells)  # of the objective
        self.violations = np.zeros(self.cells)
        self.greatest = 0.0  # objective of the dearest task so far

    def _choose(self, cells: Indices, now: float) -> Choice:
        counts = self.counts[cells]
        fewest = int(counts.argmin())
        if counts[fewest] == 0:
            return Choice(int(cells[fewest]), "not tried yet")
        position, reason = self._pick(counts, self._costs(cells, counts))
        return Choice(int(cells[position]), reason)

    def _costs(self, cells: Indices, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        costs: NDArray[np.float64] = self.totals[cells] / (counts * self.greatest)
        if self.penalty:
            costs += self.penalty * self.violations[cells] / counts
        return costs

    @abstractmethod
    def _pick(
        self, counts: NDArray[np.float64], costs: NDArray[np.float64]
    ) -> tuple[int, str]:
        """Position to play, and why, from trials and mean costs, each of shape (cells,)."""

    def _learn(self, cell: int, values: tuple[float, ...], now: float) -> None:
        self.counts[cell] += 1
        self.totals[cell] += values[0]
        self.greatest = max(self.greatest, values[0])
        given = dict(zip(self.quantities, values, strict=True))
        self.violations[cell] += any(given[name] > limit for name, limit in self.limits.items())


class UCB(CostBandit):
    """UCB1 (Auer, Cesa-Bianchi and Fischer, Machine Learning 2002).

    Parameters
    ----------
    exploration
        Factor on the confidence term sqrt(2 ln t / n). The textbook's 1 covers noise as wide as
        the whole range of costs and plays 60 arms almost evenly for 1000 tasks. Measurements here
        scatter by some percent, so the default is 0.1, which favours this baseline.
    """

    name: ClassVar[str] = "ucb"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        self.exploration = _checked_exploration(exploration)

    def _pick(
        self, counts: NDArray[np.float64], costs: NDArray[np.float64]
    ) -> tuple[int, str]:
        bonus = np.sqrt(2.0 * math.log(counts.sum()) / counts)
        return int((costs - self.exploration * bonus).argmin()), "least cost bound"


class Thompson(CostBandit):
    """Gaussian Thompson sampling (Agrawal and Goyal, AISTATS 2013).

    Parameters
    ----------
    exploration
        Standard deviation of one cost in the sampling distribution N(mean, sd^2 / (n + 1)). The
        textbook's 1 is wider than the whole range of costs; see ``UCB`` for the default.
    """

    name: ClassVar[str] = "thompson"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        self.exploration = _checked_exploration(exploration)

    def _pick(
        self, counts: NDArray[np.float64], costs: NDArray[np.float64]
    ) -> tuple[int, str]:
        draws = self.rng.standard_normal(len(costs)) / np.sqrt(counts + 1.0)
        return int((costs + self.exploration * draws).argmin()), "least sampled cost"


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

    def _pick(
        self, counts: NDArray[np.float64], costs: NDArray[np.float64]
    ) -> tuple[int, str]:
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(costs))), "drawn evenly"
        return int(costs.argmin()), "least mean cost"


def _checked_exploration(exploration: float) -> float:
    if not 0 <= exploration < math.inf:
        raise ValueError(f"exploration={exploration}: expected 0 or more")
    return exploration
