"""Safe GP-UCB: least energy among the arms that are surely fast enough (the paper's rule).

One Gaussian process per quantity, on its logarithm. With bounds l, u = mean -/+ sqrt(beta) sd:

    safe set   S = {arm: u_latency(arm) <= limit} and the trusted seed arms
    choice     argmin over S of l_energy

The form is that of EdgeBOL (CoNEXT 2021), a special case of the safe rules that began with
SafeOpt (arXiv:1602.04450). The posterior is exact on the finite arm set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Choice, Indices, Scheduler
from mllm_sched.schedulers.kernels import Hyperparameters, covariance
from mllm_sched.schedulers.posterior import FinitePosterior


class SafeGPUCB(Scheduler):
    """The paper's scheduler.

    Parameters
    ----------
    beta
        Width of the bounds: they lie sqrt(beta) standard deviations from the mean.
    hyperparameters
        Per quantity; the defaults of ``Hyperparameters`` where none are given.
    forget_rate
        How fast old measurements fade, per unit of ``now``, within [0, 1). 0 never forgets.
    **common
        See ``Scheduler``. At least one seed arm is needed.

    Notes
    -----
    Prior means: the limit itself for a limited quantity, so that an unknown arm is as likely safe
    as not; the first measurement for the objective.

    A seed arm is trusted until its own lower bound is above a limit. When no arm is certified or
    trusted, the rule falls back to the arm most likely to be within the limits.
    """

    name: ClassVar[str] = "safe-gp-ucb"

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
        if not len(self.seeds):
            raise ValueError("seeds=[]: safe-gp-ucb needs at least one arm trusted to be safe")
        if not beta > 0:
            raise ValueError(f"beta={beta}: expected above 0")
        if not 0 <= forget_rate < 1:
            raise ValueError(f"forget_rate={forget_rate}: expected within [0, 1)")
        self.width = math.sqrt(beta)
        self.forget_rate = forget_rate
        joint = ArmSpace((*self.contexts.factors, *space.factors)) if self.contexts else space
        self.beliefs = {
            quantity: self._belief(joint, quantity, (hyperparameters or {}).get(quantity))
            for quantity in self.quantities
        }
        self._log_limits = {name: math.log(limit) for name, limit in self.limits.items()}
        self._trusted = np.zeros(self.cells, dtype=bool)
        self._trusted.reshape(-1, len(space))[:, self.seeds] = True
        self._told = False
        self._updated_at = 0.0

    def _belief(
        self, joint: ArmSpace, quantity: str, values: Hyperparameters | None
    ) -> FinitePosterior:
        values = values or Hyperparameters.default(joint)
        mean = math.log(self.limits[quantity]) if quantity in self.limits else 0.0
        return FinitePosterior(mean, covariance(joint, values), values.noise_variance)

    def _choose(self, cells: Indices, now: float) -> Choice:
        self._forget(now)
        certified, trusted = self.safe_set()
        allowed = (certified | trusted)[cells]
        if not allowed.any():
            return self._fallback(cells)
        candidates = cells[allowed]
        cell = int(candidates[self.lower(self.objective)[candidates].argmin()])
        reason = "least energy bound in the safe set" if certified[cell] else "trusted seed"
        return Choice(cell, reason, bool(certified[cell]), self.p_feasible(cell))

    def _fallback(self, cells: Indices) -> Choice:
        probability = [self.p_feasible(int(cell)) for cell in cells]
        best = int(np.argmax(probability))
        reason = "no arm is certified: most likely within the limits"
        return Choice(int(cells[best]), reason, False, probability[best])

    def safe_set(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which cells are certified, and which are trusted; each of shape (cells,)."""
        certified = np.ones(self.cells, dtype=bool)
        trusted = self._trusted
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            spread = self.width * belief.sd()
            certified &= belief.mean + spread <= limit
            trusted = trusted & (belief.mean - spread <= limit)
        return certified, trusted

    def lower(self, quantity: str) -> NDArray[np.float64]:
        """Lower bound of the log of a quantity, shape (cells,)."""
        belief = self.beliefs[quantity]
        return belief.mean - self.width * belief.sd()

    def p_feasible(self, cell: int) -> float:
        """Probability that the true mean is within every limit, the limits as independent."""
        probability = 1.0
        for name, limit in self._log_limits.items():
            belief = self.beliefs[name]
            sd = max(float(belief.sd()[cell]), 1e-150)
            z = (limit - float(belief.mean[cell])) / sd
            probability *= 0.5 * math.erfc(-z / math.sqrt(2.0))
        return probability

    def _learn(self, cell: int, values: tuple[float, ...], now: float) -> None:
        self._forget(now)
        if not self._told and self.objective not in self.limits:
            self._centre(math.log(values[0]))
        self._told = True
        for quantity, value in zip(self.quantities, values, strict=True):
            self.beliefs[quantity].tell(cell, math.log(value))

    def _fail(self, cell: int, now: float) -> None:
        """A failed run says nothing of energy; it counts as twice every limit."""
        self._forget(now)
        for name, limit in self._log_limits.items():
            self.beliefs[name].tell(cell, limit + math.log(2.0))

    def _centre(self, log_value: float) -> None:
        belief = self.beliefs[self.objective]
        belief.prior_mean += log_value
        belief.mean += log_value

    def _forget(self, now: float) -> None:
        if self.forget_rate and now > self._updated_at:
            for belief in self.beliefs.values():
                belief.forget(now - self._updated_at, self.forget_rate)
        self._updated_at = max(now, self._updated_at)
