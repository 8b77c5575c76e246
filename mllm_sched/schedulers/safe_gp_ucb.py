"""Safe GP-UCB: least energy among the arms that are surely fast enough (the paper's rule).

One Gaussian process per quantity, on its logarithm. With bounds l, u = mean -/+ sqrt(beta) sd:

    safe set   S = {arm: u_latency(arm) <= limit} and the trusted seed arms
    choice     argmin over S of l_energy

The form is that of EdgeBOL (CoNEXT 2021), a special case of the safe rules that began with
SafeOpt (arXiv:1602.04450). The posterior is exact on the finite arm set. Arms that are still
running count for the bounds of the objective as if they had been told, but never certify anything.

``GPScheduler`` holds what the field's other rules on Gaussian processes share with it
(``constrained_gp.py``); they have only to say which arm they take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices, LogBounds, Scheduler, Values
from mllm_sched.schedulers.decision import Choice, from_logs, greatest, least, within
from mllm_sched.schedulers.gp import FinitePosterior, Hyperparameters, covariance

Array = NDArray[np.float64]


class GPScheduler(Scheduler):
    """Beliefs, bounds and learning.

    Parameters
    ----------
    beta
        Width of the bounds: they lie sqrt(beta) standard deviations from the mean.
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
        if not 0 < beta < math.inf:
            raise ValueError(f"beta={beta}: expected above 0")
        if not 0 <= forget_rate < 1:
            raise ValueError(f"forget_rate={forget_rate}: expected within [0, 1)")
        self.beta, self.forget_rate = beta, forget_rate
        self.hyperparameters = dict(hyperparameters or {})
        self.width = math.sqrt(beta)
        self.beliefs = {quantity: self._belief(quantity) for quantity in self.quantities}
        self._told = False
        self._updated_at = 0.0

    def _belief(self, quantity: str) -> FinitePosterior:
        values = self.hyperparameters.get(quantity) or Hyperparameters.default(self.joint)
        mean = math.log(self.limits[quantity]) if quantity in self.limits else 0.0
        return FinitePosterior(mean, self._prior(values), values.noise_variance)

    def _prior(self, values: Hyperparameters) -> Array:
        """Prior covariance of all cells, shape (cells, cells)."""
        return covariance(self.joint, values)

    def lower(self, quantity: str) -> Array:
        """Lower bound of the log of a quantity, shape (cells,)."""
        belief = self.beliefs[quantity]
        sd = belief.sd_after(self._running()) if quantity == self.objective else belief.sd()
        return belief.mean - self.width * sd

    def upper(self, quantity: str) -> Array:
        """Upper bound of the log of a quantity, shape (cells,)."""
        belief = self.beliefs[quantity]
        return belief.mean + self.width * belief.sd()

    def certified(self) -> NDArray[np.bool_]:
        """Whether the upper bounds of a cell are within every limit, shape (cells,)."""
        limits = self._log_limits.items()
        return _all([within(self.upper(name), limit) for name, limit in limits])

    def possible(self) -> NDArray[np.bool_]:
        """Whether the lower bounds of a cell are within every limit, shape (cells,).

        Unlike ``lower`` it never counts arms that still run.
        """
        masks = []
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            masks.append(within(belief.mean - self.width * belief.sd(), limit))
        return _all(masks)

    def excess(self) -> Array:
        """How far the mean of a cell is beyond its worst limit, in logs, shape (cells,)."""
        return np.max([self.beliefs[q].mean - bar for q, bar in self._log_limits.items()], axis=0)

    def p_feasible(self, cell: int) -> float:
        """Probability that the true mean is within every limit, the limits as independent."""
        probability = 1.0
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            sd = max(float(belief.sd()[cell]), 1e-150)
            z = (limit - float(belief.mean[cell])) / sd
            probability *= 0.5 * math.erfc(-z / math.sqrt(2.0))
        return probability

    def _least_beyond(self, cells: Indices) -> Choice:
        """The verdict that no arm can meet the limits, and what to run nevertheless."""
        cell = int(cells[least(self.excess()[cells])])
        reason = "no arm can meet the limits: least beyond them"
        return self._choice(cell, reason, cells, infeasible=True)

    def _choice(
        self,
        cell: int,
        reason: str,
        cells: Indices,
        certified: NDArray[np.bool_] | None = None,
        *,
        infeasible: bool = False,
    ) -> Choice:
        """A cell with what is believed of it; ``certified()`` if it is at hand."""
        certified = self.certified() if certified is None else certified
        return Choice(
            cell,
            reason,
            certified=bool(certified[cell]),
            p_feasible=self.p_feasible(cell),
            bounds=self._bounds_of(cell),
            safe_arms=int(np.count_nonzero(certified[cells])),
            infeasible=infeasible,
        )

    def _bounds_of(self, cell: int) -> dict[str, tuple[float, float]]:
        """As the base class has it, of one cell without arrays: part of every ``ask``."""
        bounds = {}
        for name, belief in self.beliefs.items():
            mean, spread = float(belief.mean[cell]), self.width * float(belief.sd()[cell])
            bounds[name] = from_logs(mean - spread, mean + spread)
        return bounds

    def _believed(self, cells: Indices) -> LogBounds:
        bounds = {}
        for name, belief in self.beliefs.items():
            mean, spread = belief.mean[cells], self.width * belief.sd()[cells]
            bounds[name] = (mean - spread, mean + spread)
        return bounds

    def _certified_cells(self) -> NDArray[np.bool_]:
        return self.certified()

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self._forget(now)
        self._centre(values)
        for quantity, value in values.items():
            belief = self.beliefs[quantity]
            belief.tell(cell, math.log(value), self._noise(belief, cell, now))

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        self._centre(values | above)
        self._learn(cell, values, now)
        for quantity, bound in above.items():
            belief = self.beliefs[quantity]
            belief.tell_above(cell, math.log(bound), self._noise(belief, cell, now))

    def _fail(self, cell: int, now: float) -> None:
        """A failed run says nothing of energy; it counts as twice every limit."""
        self._forget(now)
        for name, value in self._beyond_all().items():
            belief = self.beliefs[name]
            belief.tell(cell, math.log(value), self._noise(belief, cell, now))

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        if not scatter:
            return super()._recall(cell, values, scatter)
        self._centre(values)
        for quantity, value in (values or self._beyond_all()).items():
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


def _all(masks: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Where all of them hold; mostly there is one."""
    return masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)


class SafeGPUCB(GPScheduler):
    """Least lower bound of energy among the certified and the trusted arms: the paper's scheduler.

    Parameters
    ----------
    **common
        See ``GPScheduler`` and ``Scheduler``. At least one seed arm is needed.

    Notes
    -----
    A seed arm is trusted until its own lower bound is above a limit. When the lower bounds of all
    arms are above a limit, none can meet them, and the one least beyond runs. When none is
    certified or trusted, the one most likely to be within the limits runs.
    """

    name: ClassVar[str] = "safe-gp-ucb"

    def __init__(self, space: ArmSpace, **common: Any) -> None:
        super().__init__(space, **common)
        self._trusted = self._trusted_cells()

    def _choose(self, cells: Indices, now: float) -> Choice:
        self._forget(now)
        certified, possible = self.certified(), self.possible()
        if not possible[cells].any():
            return self._least_beyond(cells)
        trusted = self._still_trusted(possible)
        candidates = cells[(certified | trusted)[cells]]
        if not len(candidates):
            cell = int(cells[greatest([self.p_feasible(int(cell)) for cell in cells])])
            reason = "no arm is certified: most likely within the limits"
            return self._choice(cell, reason, cells, certified)
        cell, reason = self._pick(candidates, cells)
        if trusted[cell] and not certified[cell]:
            reason = "trusted seed"
        return self._choice(cell, reason, cells, certified)

    def safe_set(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which cells are certified, and which are trusted; each of shape (cells,)."""
        return self.certified(), self._still_trusted(self.possible())

    def _still_trusted(self, possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which cells are trusted, given those that may be within the limits; shape (cells,)."""
        return self._trusted & possible

    def _pick(self, candidates: Indices, cells: Indices) -> tuple[int, str]:
        """The cell to take of the safe ones, and why; ``cells`` are all that can be chosen."""
        cell = candidates[least(self.lower(self.objective)[candidates])]
        return int(cell), "least energy bound in the safe set"
