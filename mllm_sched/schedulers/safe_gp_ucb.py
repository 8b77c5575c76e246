"""Safe GP-UCB, the paper's scheduler: least energy among the arms that surely meet the limits.

One Gaussian process per quantity, on its logarithm (``gp.py``), with posterior mean m and standard
deviation s of every arm:

    bounds      l, u = m -/+ sqrt(beta) s                                       (1)
    safe set    S = {arms with u of every limited quantity within its limit}    (2)
    choice      argmin of l of the objective over S and the trusted seeds       (3)

``Scheduler.ask`` calls ``_choose``: bounds, then ``_choose_among``: safe set, then ``_pick``: the
choice. An arm in a context is a *cell*; without contexts cells are arms.

The form is that of EdgeBOL (CoNEXT 2021), a special case of the safe schedulers that began with
SafeOpt (arXiv:1602.04450). Arms that are still running reduce the variance of the objective
already, but never certify anything.

``GPScheduler`` holds what ``constrained_gp.py`` shares: beliefs, bounds and learning.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtr

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import (
    Array,
    Decision,
    Indices,
    LogBounds,
    Mask,
    Scheduler,
    Values,
    expect,
    from_logs,
    greatest,
    least,
    within,
)
from mllm_sched.schedulers.gp import FinitePosterior, Hyperparameters, covariance


class GPScheduler(Scheduler):
    """Beliefs, bounds and learning.

    Parameters
    ----------
    beta
        Width of the bounds, see (1).
    hyperparameters
        Per quantity; the defaults of ``Hyperparameters`` where none are given.
    forget_rate
        How fast old measurements fade, per unit of ``now``, within [0, 1). 0 never forgets.
    **common
        See ``Scheduler``.

    Notes
    -----
    Prior means: the limit itself for a limited quantity, so that an unknown arm is as likely safe
    as not; the first measurement for the objective.
    """

    STATE: ClassVar[tuple[str, ...]] = ("beliefs", "_told", "_updated_at")

    def __init__(
        self,
        space: ArmSpace,
        *,
        beta: float = 4.0,
        hyperparameters: Mapping[str, Hyperparameters] | None = None,
        forget_rate: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(space, **common)
        expect(0 < beta < math.inf, f"beta={beta}", "above 0")
        expect(0 <= forget_rate < 1, f"forget_rate={forget_rate}", "within [0, 1)")
        self.beta, self.forget_rate = beta, forget_rate
        self.hyperparameters = dict(hyperparameters or {})
        self.width = math.sqrt(beta)
        self.beliefs = {quantity: self._prior_belief(quantity) for quantity in self.quantities}
        self._told = False  # whether the objective was measured
        self._updated_at = 0.0

    def _prior_belief(self, quantity: str) -> FinitePosterior:
        values = self.hyperparameters.get(quantity) or Hyperparameters.default(self.joint)
        mean = self._log_limits.get(quantity, 0.0)
        return FinitePosterior(mean, self._prior_covariance(values), values.noise_variance)

    def _prior_covariance(self, values: Hyperparameters) -> Array:
        return covariance(self.joint, values)

    # From ask to choice

    def _choose(self, cells: Indices, now: float) -> Decision:
        self._forget(now)
        possible = self.possible()
        if np.count_nonzero(possible[cells]):
            return self._choose_among(cells, possible)
        excess = [self.beliefs[name].mean - limit for name, limit in self._log_limits.items()]
        nearest = cells[least(reduce(np.maximum, excess)[cells])]
        reason = "no arm can meet the limits: least beyond them"
        return self._decide(int(nearest), reason, cells, infeasible=True)

    @abstractmethod
    def _choose_among(self, cells: Indices, possible: Mask) -> Decision:
        """A decision for one of these cells, some of which are ``possible()``."""

    def lower(self, quantity: str) -> Array:
        """Lower bound (1) of the log of a quantity, shape (cells,)."""
        belief = self.beliefs[quantity]
        sd = belief.sd_after(self._running()) if quantity == self.objective else belief.sd()
        return belief.mean - self.width * sd

    def upper(self, quantity: str) -> Array:
        """Upper bound (1) of the log of a quantity, shape (cells,)."""
        belief = self.beliefs[quantity]
        return belief.mean + self.width * belief.sd()

    def certified(self) -> Mask:
        """Whether the upper bounds of a cell are within every limit, shape (cells,)."""
        bounds = [within(self.upper(name), limit) for name, limit in self._log_limits.items()]
        return reduce(np.logical_and, bounds)

    def possible(self) -> Mask:
        """Whether the lower bounds of a cell are within every limit, shape (cells,).

        Arms that are still running never count.
        """
        beliefs = [(self.beliefs[name], limit) for name, limit in self._log_limits.items()]
        bounds = [within(b.mean - self.width * b.sd(), limit) for b, limit in beliefs]
        return reduce(np.logical_and, bounds)

    def p_feasible(self, cell: int) -> float:
        """Probability that the true mean is within every limit, the limits as independent."""
        probability = 1.0
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            sd = max(float(belief.sd()[cell]), 1e-150)
            z = (limit - float(belief.mean[cell])) / sd
            probability *= 0.5 * math.erfc(-z / math.sqrt(2.0))
        return probability

    def _all_feasible(self, cells: Indices) -> Array:
        scores = [
            (limit - self.beliefs[name].mean[cells])
            / np.maximum(self.beliefs[name].sd()[cells], 1e-150)
            for name, limit in self._log_limits.items()
        ]
        return reduce(np.multiply, map(ndtr, scores))

    def _decide(
        self,
        cell: int,
        reason: str,
        cells: Indices,
        certified: Mask | None = None,
        *,
        infeasible: bool = False,
    ) -> Decision:
        certified = self.certified() if certified is None else certified
        bounds = {}
        for name, belief in self.beliefs.items():  # one cell, without arrays: part of every ask
            mean, spread = float(belief.mean[cell]), self.width * float(belief.sd()[cell])
            bounds[name] = from_logs(mean - spread, mean + spread)
        return self._decision(
            cell,
            reason,
            certified=bool(certified[cell]),
            p_feasible=self.p_feasible(cell),
            bounds=bounds,
            safe_arms=int(np.count_nonzero(certified[cells])),
            infeasible=infeasible,
        )

    def _believed(self, cells: Indices) -> LogBounds:
        bounds = {}
        for name, belief in self.beliefs.items():
            mean, spread = belief.mean[cells], self.width * belief.sd()[cells]
            bounds[name] = (mean - spread, mean + spread)
        return bounds

    def _certified_cells(self) -> Mask:
        return self.certified()

    # From tell to beliefs

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._forget(now)
        self._centre(values)
        self._condition(cell, values, now)

    def _fail(self, cell: int, now: float) -> None:
        """A failed run says nothing of the objective."""
        self._forget(now)
        self._condition(cell, self._twice_the_limits(), now)

    def _condition(self, cell: int, values: Values, now: float) -> None:
        for quantity, value in values.items():
            belief = self.beliefs[quantity]
            belief.tell(cell, math.log(value), self._noise(belief, cell, now))

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        self._centre(values | above)
        self._learn(cell, values, now)
        for quantity, bound in above.items():
            belief = self.beliefs[quantity]
            belief.tell_above(cell, math.log(bound), self._noise(belief, cell, now))

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        if not scatter:
            return super()._recall(cell, values, scatter)
        self._centre(values)
        for quantity, value in (values or self._twice_the_limits()).items():
            belief = self.beliefs[quantity]
            belief.tell(cell, math.log(value), belief.noise_variance + scatter**2)
        return None

    def _centre(self, values: Values) -> None:
        """The first measurement of the objective is its prior mean, unless it has a limit."""
        if not self._told and self.objective in values:
            self._told = True
            if self.objective not in self.limits:
                belief = self.beliefs[self.objective]
                belief.prior_mean += math.log(values[self.objective])
                belief.mean += math.log(values[self.objective])

    def _forget(self, now: float) -> None:
        if self.forget_rate and now > self._updated_at:
            for belief in self.beliefs.values():
                belief.forget(now - self._updated_at, self.forget_rate)
        self._updated_at = max(now, self._updated_at)

    def _noise(self, belief: FinitePosterior, cell: int, now: float) -> float:
        """Variance of a measurement, with what it has gained since if it comes late."""
        late = self._updated_at - now
        if not self.forget_rate or late <= 0:
            return belief.noise_variance
        forgotten = 1.0 - (1.0 - self.forget_rate) ** late
        return belief.noise_variance + forgotten * float(belief.prior_covariance[cell, cell])


class SafeGPUCB(GPScheduler):
    """The paper's scheduler: least lower bound of energy in the safe set.

    At least one seed arm is needed. It is trusted until its own lower bound is above a limit. When
    the lower bounds of all arms are above a limit, none can meet them, and the one that violates
    them least runs. When none is certified or trusted, the one most likely to be within the limits
    runs.
    """

    name: ClassVar[str] = "safe-gp-ucb"

    def __init__(self, space: ArmSpace, **common: Any) -> None:
        super().__init__(space, **common)
        self._trusted = self._trusted_cells()

    def _choose_among(self, cells: Indices, possible: Mask) -> Decision:
        certified, trusted = self.certified(), self._still_trusted(possible)
        safe = cells[(certified | trusted)[cells]]  # (2)
        if not len(safe):
            likely = cells[greatest(self._all_feasible(cells))]
            reason = "no arm is certified: most likely within the limits"
            return self._decide(int(likely), reason, cells, certified)
        cell, reason = self._pick(safe, cells)
        if trusted[cell] and not certified[cell]:
            reason = "trusted seed"
        return self._decide(cell, reason, cells, certified)

    def _pick(self, safe: Indices, cells: Indices) -> tuple[int, str]:
        """The cell to take of the safe ones, and why; ``cells`` are all that can be chosen."""
        cell = safe[least(self.lower(self.objective)[safe])]  # (3)
        return int(cell), "least energy bound in the safe set"

    def _still_trusted(self, possible: Mask) -> Mask:
        """Which cells are trusted, given those that may be within the limits; shape (cells,)."""
        return self._trusted & possible

    def safe_set(self) -> tuple[Mask, Mask]:
        """Which cells are certified, and which are trusted; each of shape (cells,)."""
        return self.certified(), self._still_trusted(self.possible())
