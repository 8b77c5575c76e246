"""The field's schedulers on Gaussian processes with limits.

The safe ones differ from safe GP-UCB in the arm they take within the safe set, or in the width of
their bounds. The last two, CONFIG and primal-dual, need no seed arm: they may violate the limits
while they learn.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtri

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import (
    Array,
    Decision,
    Indices,
    Mask,
    Values,
    expect,
    greatest,
    least,
    within,
)
from mllm_sched.schedulers.gp import Hyperparameters
from mllm_sched.schedulers.safe_gp_ucb import GPScheduler, SafeGPUCB

JITTER = 1e-9  # of a covariance, in squared logs: far below any noise, far above rounding


class EdgeBOL(SafeGPUCB):
    """EdgeBOL (Ayala-Romero et al., CoNEXT 2021): seed arms stay trusted, and beta is 2.5^2."""

    name: ClassVar[str] = "edgebol"

    def __init__(self, space: ArmSpace, *, beta: float = 6.25, **common: Any) -> None:
        super().__init__(space, beta=beta, **common)

    def _still_trusted(self, possible: Mask) -> Mask:
        return self._trusted


class SafeThompson(SafeGPUCB):
    """Thompson sampling within the safe set: one draw of the energies, its least safe arm."""

    name: ClassVar[str] = "safe-thompson"

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        belief = self.beliefs[self.objective]
        covariance = belief.covariance[safe[:, None], safe]
        # By Cholesky: eigenvectors, NumPy's default, have signs that differ between processors.
        root = np.linalg.cholesky(covariance + JITTER * np.eye(len(safe)))
        drawn = belief.mean[safe] + root @ self.rng.standard_normal(len(safe))
        return int(safe[least(drawn)]), "least sampled energy in the safe set"


class SafeOpt(SafeGPUCB):
    """SafeOpt (Sui et al., ICML 2015; Berkenkamp et al., arXiv 1602.04450), without Lipschitz.

    Takes the least known of the minimisers, which may still be best, and the expanders, which may
    still certify another arm.
    """

    name: ClassVar[str] = "safeopt"

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        least_upper = self.upper(self.objective)[safe].min()
        minimisers = safe[within(self.lower(self.objective)[safe], least_upper)]
        expanders = self._expanders(safe, cells)
        interesting = np.zeros(self.cells, dtype=bool)
        interesting[minimisers] = interesting[expanders] = True
        cell = _widest(interesting.nonzero()[0], self._widths())
        return cell, f"least known: {'expander' if cell in expanders else 'minimiser'}"

    def _widths(self) -> Array:
        """Widest interval of a cell in units of its prior's, shape (cells,)."""
        running = self._running()
        return reduce(
            np.maximum,
            [
                belief.sd_after(running) / np.sqrt(belief.prior_covariance.diagonal())
                for belief in self.beliefs.values()
            ],
        )

    def _expanders(self, safe: Indices, cells: Indices) -> Indices:
        """Safe cells that would certify another, were they as good as they may be."""
        outside = cells[~self.certified()[cells]]
        certifies = np.ones((len(safe), len(outside)), dtype=bool)
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            between = belief.covariance[safe[:, None], outside]
            variance = belief.sd()[safe, None] ** 2 + belief.noise_variance
            hoped = -self.width * belief.sd()[safe, None]  # the lower bound, off the mean
            mean = belief.mean[outside] + between * hoped / variance
            left = np.maximum(belief.sd()[outside] ** 2 - between**2 / variance, 0.0)
            certifies &= within(mean + self.width * np.sqrt(left), limit)
        return safe[certifies.any(axis=1)]


class StageOpt(SafeOpt):
    """StageOpt (Sui et al., arXiv 1806.07555): first expand the safe set, then minimise in it.

    The first stage has ``expansion`` tasks, or fewer if nothing is left to expand.
    """

    name: ClassVar[str] = "stageopt"

    def __init__(self, space: ArmSpace, *, expansion: int = 60, **common: Any) -> None:
        super().__init__(space, **common)
        expect(expansion >= 0, f"expansion={expansion}", "tasks, 0 or more")
        self.expansion = expansion

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        if self.steps < self.expansion:
            expanders = self._expanders(safe, cells)
            if len(expanders):
                return _widest(expanders, self._widths()), "first stage: least known expander"
        return SafeGPUCB._pick(self, safe, cells)


class GoOSE(SafeGPUCB):
    """GoOSE (Turchetta, Berkenkamp and Krause, NeurIPS 2019, arXiv 1910.13726).

    Takes what an optimist would, if it is safe; if not, the safe arm that tells most of it.
    """

    name: ClassVar[str] = "goose"

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        hopeful = cells[(self.possible() | self._trusted)[cells]]
        goal = int(hopeful[least(self.lower(self.objective)[hopeful])])
        if goal in safe:
            return goal, "what an optimist would take, and safe"
        information = np.zeros(len(safe))
        for name in self.limits:
            belief = self.beliefs[name]
            sd = belief.sd_after(self._running())[safe]
            information += belief.covariance[safe, goal] ** 2 / (sd**2 + belief.noise_variance)
        noise = sum(self.beliefs[name].noise_variance for name in self.limits)
        if not (information > 0.01 * noise).any():
            return super()._pick(safe, cells)
        return int(safe[greatest(information)]), "tells most of what an optimist would take"


class Conformal(SafeGPUCB):
    """Online conformal calibration of the bounds on the limits (Zhang et al., arXiv 2306.17815).

    Whatever the kernel, observed violations tend to ``violation_rate`` or less, if the seed arms
    have fewer: once the coverage reaches 1, only they are safe. ``step`` is how far one violation
    moves the coverage of the bounds on the limits.
    """

    name: ClassVar[str] = "conformal"
    STATE: ClassVar[tuple[str, ...]] = ("coverage",)

    def __init__(
        self, space: ArmSpace, *, violation_rate: float = 0.05, step: float = 0.2, **common: Any
    ) -> None:
        super().__init__(space, **common)
        expect(0 < violation_rate < 1, f"violation_rate={violation_rate}", "within (0, 1)")
        expect(0 < step < math.inf, f"step={step}", "above 0")
        self.violation_rate, self.step = violation_rate, step
        self.coverage = math.erf(self.width / math.sqrt(2.0))

    def certified(self) -> Mask:
        """Whether a cell is within every limit at the coverage of now, shape (cells,)."""
        if self.coverage >= 1.0:
            return np.zeros(self.cells, dtype=bool)
        width = float(ndtri((1.0 + max(self.coverage, 0.0)) / 2.0))
        beliefs = [(self.beliefs[name], limit) for name, limit in self._log_limits.items()]
        return reduce(np.logical_and, [within(b.mean + width * b.sd(), bar) for b, bar in beliefs])

    def _observe(self, cell: int, values: Values, above: Values, now: float) -> None:
        super()._observe(cell, values, above, now)
        stopped = any(above.get(name, 0.0) >= limit for name, limit in self.limits.items())
        violated = self._violates(values) or stopped or not (values or above)
        self.coverage += self.step * (violated - self.violation_rate)

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        """Runs of another table do not move the coverage."""
        kept = self.coverage
        super()._recall(cell, values, scatter)
        self.coverage = kept


class RiskBudget(SafeGPUCB):
    """An optimist among all arms, as long as a budget of expected violations lasts.

    It begins with ``start`` expected violations, and every task adds ``violation_rate``.
    """

    name: ClassVar[str] = "risk-budget"
    STATE: ClassVar[tuple[str, ...]] = ("budget",)

    def __init__(
        self, space: ArmSpace, *, violation_rate: float = 0.005, start: float = 1.0, **common: Any
    ) -> None:
        super().__init__(space, **common)
        expect(0 <= violation_rate < 1, f"violation_rate={violation_rate}", "within [0, 1)")
        expect(0 <= start < math.inf, f"start={start}", "0 or more")
        self.violation_rate, self.start = violation_rate, start
        self.budget = start

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        payable = np.zeros(self.cells, dtype=bool)
        payable[cells] = 1.0 - self._all_feasible(cells) <= self.budget
        payable[safe] = True
        cells = payable.nonzero()[0]
        cell = int(cells[least(self.lower(self.objective)[cells])])
        self.budget += self.violation_rate
        if cell in safe:
            return cell, "least energy bound, and safe"
        self._charge(1.0 - self.p_feasible(cell))
        self.budget -= 1.0 - self.p_feasible(cell)
        return cell, "least energy bound, paid from the budget of risk"

    def _refund(self, amount: float) -> None:
        self.budget += amount


class SafeLinUCB(SafeGPUCB):
    """Safe GP-UCB where logs are linear in the factors, as in Safe-LUCB (Amani et al., 2019).

    A component has an intercept; the slope of an ordered factor is shared by all components.
    """

    name: ClassVar[str] = "safe-linucb"

    def _prior_covariance(self, values: Hyperparameters) -> Array:
        columns = [np.ones(self.cells)]
        for factor, column in zip(self.joint.factors, self.joint.features().T, strict=True):
            if factor.categorical:
                columns += [(column == code).astype(float) for code in range(len(factor.levels))]
            else:
                columns.append(column - column.mean())
        features = np.column_stack(columns)
        return values.variance * features @ features.T


def _widest(cells: Indices, widths: Array) -> int:
    return int(cells[greatest(widths[cells])])


class CONFIG(GPScheduler):
    """CONFIG (Xu et al., ICML 2023, arXiv 2211.00162): an optimist in energy and in the limits."""

    name: ClassVar[str] = "config"

    def _choose_among(self, cells: Indices, possible: Mask) -> Decision:
        hopeful = cells[possible[cells]]
        cell = int(hopeful[least(self.lower(self.objective)[hopeful])])
        return self._decide(cell, "least energy bound that may be feasible", cells)


class PrimalDual(GPScheduler):
    """A price on excess, raised while the chosen arm violates (Zhou and Ji, NeurIPS 2022).

    Excess is that of the lower bound, so that the optimist pays only for what is surely too much.

    The price moves by ``step`` times the excess of the chosen arm, in logs, up to ``dearest``: the
    energy, in logs, that one log of excess is worth at most.
    """

    name: ClassVar[str] = "primal-dual"
    STATE: ClassVar[tuple[str, ...]] = ("prices",)

    def __init__(
        self, space: ArmSpace, *, step: float = 1.0, dearest: float = 100.0, **common: Any
    ) -> None:
        super().__init__(space, **common)
        for name, value in (("step", step), ("dearest", dearest)):
            expect(0 < value < math.inf, f"{name}={value}", "above 0")
        self.step, self.dearest = step, dearest
        self.prices: Values = dict.fromkeys(self.limits, 0.0)

    def _choose_among(self, cells: Indices, possible: Mask) -> Decision:
        cost = self.lower(self.objective)[cells]
        for name, limit in self._log_limits.items():
            cost = cost + self.prices[name] * (self.lower(name)[cells] - limit)
        cell = int(cells[least(cost)])
        for name, limit in self._log_limits.items():
            moved = self.prices[name] + self.step * float(self.lower(name)[cell] - limit)
            self.prices[name] = min(max(moved, 0.0), self.dearest)
        return self._decide(cell, "least energy bound plus the price of excess", cells)
