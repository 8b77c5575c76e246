"""Bandits that learn of each arm by itself: the paper's baselines, and others of the field.

UCB, Thompson sampling and epsilon-greedy minimise one cost, on the same logarithmic scale as the
Gaussian processes:

    mean log energy  +  penalty x share of tasks that violate a limit

Every arm is tried once, in order, before any is tried twice. Sliding-window UCB, discounted UCB
and EXP3 are for environments that change. Constrained UCB and profile-then-commit know the limits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import (
    Array,
    Decision,
    Indices,
    LogBounds,
    Scheduler,
    Values,
    expect,
    least,
    within,
)


class CostStatistics(Scheduler):
    """Mean cost of every cell.

    ``penalty`` is the cost of a task that violates a limit, in log energy: 1 counts as e times its
    energy.

    After a change of limits, shares of violations begin anew. The verdict that no arm can meet the
    limits is given when every arm was tried and none ever met them; the choice is then as always.
    """

    STATE: ClassVar[tuple[str, ...]] = ("counts", "totals", "checked", "beyond")

    def __init__(self, space: ArmSpace, *, penalty: float = 0.0, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 <= penalty < math.inf, f"penalty={penalty}", "0 or more")
        self.penalty = penalty
        self.counts = np.zeros(self.cells)
        self.totals = np.zeros(self.cells)  # of log energy
        self.checked = np.zeros(self.cells)  # against the limits as they are now
        self.beyond = np.zeros(self.cells)  # those that violated one

    def costs(self) -> Array:
        """Mean cost of every cell, shape (cells,); of one without a result, the mean of all."""
        means = self.totals / np.maximum(self.counts, 1e-12)
        if self.penalty:
            means += self.penalty * self.beyond / np.maximum(self.checked, 1e-12)
        unknown = self.counts == 0
        if np.count_nonzero(unknown):
            means[unknown] = 0.0 if unknown.all() else means[~unknown].mean()
        return means

    def _believed(self, cells: Indices) -> LogBounds:
        counts = np.maximum(self.counts[cells], 1e-12)
        means = np.where(self.counts[cells] > 0, self.totals[cells] / counts, np.nan)
        half = self._half_width(counts)
        return {self.objective: (means - half, means + half)}

    def _half_width(self, counts: Array) -> Array | float:
        """Half-width of the bounds on mean costs of so many runs."""
        return 0.0

    def hopeless(self, cells: Indices) -> bool:
        """Whether each of these cells was tried and always violated a limit."""
        beyond = self.beyond[cells]
        if np.count_nonzero(beyond) < len(cells):
            return False
        return bool((beyond == self.checked[cells]).all())

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._count(cell, math.log(values[self.objective]), self._violates(values))

    def _count(self, cell: int, log_value: float, beyond: bool) -> None:
        self.counts[cell] += 1
        self.totals[cell] += log_value
        self.checked[cell] += 1
        self.beyond[cell] += beyond

    def _limits_changed(self) -> None:
        self.checked[:] = 0.0
        self.beyond[:] = 0.0


class CostBandit(CostStatistics):
    """Every arm is tried once, running ones included; then ``_pick`` decides by mean costs."""

    def _choose(self, cells: Indices, now: float) -> Decision:
        counts = self._with_running(self.counts, cells)
        fewest = int(counts.argmin())
        if counts[fewest] == 0:
            return self._decision(int(cells[fewest]), "not tried yet")
        position, reason = self._pick(counts, self.costs()[cells])
        return self._decision(int(cells[position]), reason, infeasible=self.hopeless(cells))

    @abstractmethod
    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        """Position to play, and why, from trials and mean costs, each of shape (cells,)."""


def _confidence(counts: Array) -> Array:
    """The confidence term of UCB1, sqrt(2 ln t / n), from runs of each cell."""
    term: Array = np.sqrt(2.0 * math.log(max(counts.sum(), 1.0)) / counts)
    return term


class UCB(CostBandit):
    """UCB1 (Auer, Cesa-Bianchi and Fischer, Machine Learning 2002).

    ``exploration`` is a factor on the confidence term. The textbook's 1 is for noise that fills
    [0, 1]; measurements scatter by some percent, so the default is 0.1, which favours this
    baseline.
    """

    name: ClassVar[str] = "ucb"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 <= exploration < math.inf, f"exploration={exploration}", "0 or more")
        self.exploration = exploration

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        return least(costs - self._half_width(counts)), "least cost bound"

    def _half_width(self, counts: Array) -> Array:
        return self.exploration * _confidence(counts)


class Thompson(CostBandit):
    """Gaussian Thompson sampling (Agrawal and Goyal, AISTATS 2013).

    ``exploration`` is the standard deviation of one cost in the sampling distribution
    N(mean, sd^2 / (n + 1)). The textbook has 1; see ``UCB`` for the default.
    """

    name: ClassVar[str] = "thompson"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 <= exploration < math.inf, f"exploration={exploration}", "0 or more")
        self.exploration = exploration

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        draws = self.rng.standard_normal(len(costs)) / np.sqrt(counts + 1.0)
        return least(costs + self.exploration * draws), "least sampled cost"

    def _half_width(self, counts: Array) -> Array:
        return self.exploration / np.sqrt(counts + 1.0)


class EpsilonGreedy(CostBandit):
    """The arm of least mean cost, but a uniform random one with probability ``epsilon``."""

    name: ClassVar[str] = "epsilon-greedy"

    def __init__(self, space: ArmSpace, *, epsilon: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 <= epsilon <= 1, f"epsilon={epsilon}", "within [0, 1]")
        self.epsilon = epsilon

    def _pick(self, counts: Array, costs: Array) -> tuple[int, str]:
        if self.rng.random() < self.epsilon:
            return int(self.rng.integers(len(costs))), "uniform random"
        return least(costs), "least mean cost"


class SlidingWindowUCB(UCB):
    """UCB1 on the last tasks only (Garivier and Moulines, ALT 2011).

    ``window`` tasks count. An arm that was not tried within them is tried again.
    """

    name: ClassVar[str] = "sliding-window-ucb"
    STATE: ClassVar[tuple[str, ...]] = ("_cells", "_logs", "_beyond_then", "_place")

    def __init__(self, space: ArmSpace, *, window: int = 500, **common: Any) -> None:
        super().__init__(space, **common)
        expect(window >= 1, f"window={window}", "1 or more")
        self.window = window
        self._cells = np.full(window, -1)
        self._logs = np.zeros(window)
        self._beyond_then = np.zeros(window)  # against the limits as they are now
        self._place = 0

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._drop_oldest()
        log_value, beyond = math.log(values[self.objective]), self._violates(values)
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
        if self.checked[old] > self.counts[old]:  # else it is from before the limits changed
            self.checked[old] -= 1
            self.beyond[old] -= self._beyond_then[self._place]
        if self.counts[old] == 0:
            self.totals[old] = 0.0  # without what rounding left

    def _limits_changed(self) -> None:
        super()._limits_changed()
        self._beyond_then[:] = 0.0


class DiscountedUCB(UCB):
    """UCB1 on counts that fade (Kocsis and Szepesvari 2006; Garivier and Moulines, ALT 2011).

    ``discount`` is what is left of a measurement after each task, within (0, 1].
    """

    name: ClassVar[str] = "discounted-ucb"

    def __init__(self, space: ArmSpace, *, discount: float = 0.998, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 < discount <= 1, f"discount={discount}", "within (0, 1]")
        self.discount = discount

    def _learn(self, cell: int, values: Values, now: float) -> None:
        for statistic in (self.counts, self.totals, self.checked, self.beyond):
            statistic *= self.discount
        super()._learn(cell, values, now)


class EXP3(CostStatistics):
    """EXP3 (Auer et al., SIAM Journal on Computing 2002), which assumes nothing of the costs.

    Costs are scaled to [0, 1] by the least and greatest seen so far. ``exploration`` is the share
    of uniform random tasks, within (0, 1], and the learning rate as well.
    """

    name: ClassVar[str] = "exp3"
    STATE: ClassVar[tuple[str, ...]] = ("_log_weights", "_probability", "_least", "_most")

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 < exploration <= 1, f"exploration={exploration}", "within (0, 1]")
        self.exploration = exploration
        self._log_weights = np.zeros(self.cells)
        self._probability = np.ones(self.cells)  # with which each cell was last drawn
        self._least, self._most = math.inf, -math.inf

    def _choose(self, cells: Indices, now: float) -> Decision:
        weights = np.exp(self._log_weights[cells] - self._log_weights[cells].max())
        even = self.exploration / len(cells)
        shares = (1.0 - self.exploration) * weights / weights.sum() + even
        shares_below = np.cumsum(shares / shares.sum())
        position = int((shares_below / shares_below[-1]).searchsorted(self.rng.random(), "right"))
        self._probability[cells[position]] = shares[position]
        return self._decision(
            int(cells[position]), "drawn by weight", infeasible=self.hopeless(cells)
        )

    def _learn(self, cell: int, values: Values, now: float) -> None:
        super()._learn(cell, values, now)
        cost = math.log(values[self.objective]) + self.penalty * self._violates(values)
        self._least, self._most = min(self._least, cost), max(self._most, cost)
        spread = max(self._most - self._least, 1e-12)
        reward = (self._most - cost) / spread
        self._log_weights[cell] += (
            self.exploration * reward / (self._probability[cell] * len(self.space))
        )


class MeanBandit(Scheduler):
    """Mean log of every quantity of every cell."""

    STATE: ClassVar[tuple[str, ...]] = ("counts", "totals")

    def __init__(self, space: ArmSpace, **common: Any) -> None:
        super().__init__(space, **common)
        self.counts = np.zeros(self.cells)
        self.totals = {quantity: np.zeros(self.cells) for quantity in self.quantities}

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self.counts[cell] += 1
        for quantity, value in values.items():
            self.totals[quantity][cell] += math.log(value)

    def _believed(self, cells: Indices) -> LogBounds:
        counts = np.maximum(self.counts[cells], 1e-12)
        half = np.where(self.counts[cells] > 0, self._half_width(counts), np.nan)
        means = {name: total[cells] / counts for name, total in self.totals.items()}
        return {name: (mean - half, mean + half) for name, mean in means.items()}

    def _half_width(self, counts: Array) -> Array:
        return np.zeros(len(counts))

    def _best(self, cells: Indices, trials: Array, reason: str) -> Decision:
        """Least lower bound of the objective among the arms whose others are within the limits."""
        observed = self.counts[cells].nonzero()[0]
        if not len(observed):  # all of them are still running
            return self._decision(int(cells[0]), "nothing told yet")
        everyone = len(observed) == len(cells)  # else some may yet turn out to be within
        cells, half = cells[observed], self._half_width(trials)[observed]
        low = {
            name: total[cells] / self.counts[cells] - half for name, total in self.totals.items()
        }
        excess = reduce(np.maximum, [low[q] - limit for q, limit in self._log_limits.items()])
        feasible = within(excess, 0.0).nonzero()[0]
        if not len(feasible):
            reason = "no arm can meet the limits" if everyone else "none told yet meets the limits"
            cell = int(cells[least(excess)])
            return self._decision(cell, f"{reason}: least beyond them", infeasible=everyone)
        best = feasible[least(low[self.objective][feasible])]
        return self._decision(int(cells[best]), reason)


class ConstrainedUCB(MeanBandit):
    """UCB on energy and on every limit: least energy bound of the arms that may be feasible.

    ``exploration`` is a factor on the confidence term; see ``UCB``.
    """

    name: ClassVar[str] = "constrained-ucb"

    def __init__(self, space: ArmSpace, *, exploration: float = 0.1, **common: Any) -> None:
        super().__init__(space, **common)
        expect(0 <= exploration < math.inf, f"exploration={exploration}", "0 or more")
        self.exploration = exploration

    def _choose(self, cells: Indices, now: float) -> Decision:
        trials = self._with_running(self.counts, cells)
        if trials.min() == 0:
            return self._decision(int(cells[trials.argmin()]), "not tried yet")
        return self._best(cells, trials, "least energy bound that may be feasible")

    def _half_width(self, counts: Array) -> Array:
        return self.exploration * _confidence(counts)


class ProfileThenCommit(MeanBandit):
    """Every arm ``rounds`` times; then for good the least mean energy within the limits."""

    name: ClassVar[str] = "profile-then-commit"

    def __init__(self, space: ArmSpace, *, rounds: int = 2, **common: Any) -> None:
        super().__init__(space, **common)
        expect(rounds >= 1, f"rounds={rounds}", "1 or more")
        self.rounds = rounds

    def _choose(self, cells: Indices, now: float) -> Decision:
        trials = self._with_running(self.counts, cells)
        if trials.min() < self.rounds:
            return self._decision(int(cells[trials.argmin()]), "profiled first")
        return self._best(cells, trials, "least mean energy within the limits")

    def _learn(self, cell: int, values: Values, now: float) -> None:
        if self.counts[cell] < self.rounds:  # committed: nothing is learned after
            super()._learn(cell, values, now)
