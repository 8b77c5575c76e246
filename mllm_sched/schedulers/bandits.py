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
from mllm_sched.schedulers.base import Choice, Indices, Scheduler


class CostBandit(Scheduler):
    """Running means of cost per cell; a rule says how to pick from them.

    Parameters
    ----------
    penalty
        Cost of a task beyond a limit, in log energy: 1 makes it count as e times its energy.
        0: energy alone.
    """

    def __init__(self, space: ArmSpace, *, penalty: float = 0.0, **common: Any) -> None:
        super().__init__(space, **common)
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty={penalty}: expected 0 or more")
        self.penalty = penalty
        self.counts = np.zeros(self.cells)
        self.totals = np.zeros(self.cells)  # of the cost

    def _choose(self, cells: Indices, now: float) -> Choice:
        counts = self.counts[cells]
        fewest = int(counts.argmin())
        if counts[fewest] == 0:
            return Choice(int(cells[fewest]), "not tried yet")
        position, reason = self._pick(counts, self.totals[cells] / counts)
        return Choice(int(cells[position]), reason)

    @abstractmethod
    def _pick(self, counts: NDArray[np.float64], costs: NDArray[np.float64]) -> tuple[int, str]:
        """Position to play, and why, from trials and mean costs, each of shape (cells,)."""

    def _learn(self, cell: int, values: tuple[float, ...], now: float) -> None:
        given = dict(zip(self.quantities, values, strict=True))
        beyond = any(given[name] > limit for name, limit in self.limits.items())
        self.counts[cell] += 1
        self.totals[cell] += math.log(values[0]) + self.penalty * beyond


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

    def _pick(self, counts: NDArray[np.float64], costs: NDArray[np.float64]) -> tuple[int, str]:
        bonus = np.sqrt(2.0 * math.log(counts.sum()) / counts)
        return int((costs - self.exploration * bonus).argmin()), "least cost bound"


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

    def _pick(self, counts: NDArray[np.float64], costs: NDArray[np.float64]) -> tuple[int, str]:
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

    def _pick(self, counts: NDArray[np.float64], costs: NDArray[np.float64]) -> tuple[int, str]:
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(costs))), "drawn evenly"
        return int(costs.argmin()), "least mean cost"


def _checked_exploration(exploration: float) -> float:
    if not 0 <= exploration < math.inf:
        raise ValueError(f"exploration={exploration}: expected 0 or more")
    return exploration
