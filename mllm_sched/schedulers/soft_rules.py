"""Rules that know the limits and may break them while they learn; they need no seed arm."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices
from mllm_sched.schedulers.decision import Choice, least
from mllm_sched.schedulers.gp_scheduler import GPScheduler
from mllm_sched.schedulers.incomplete import Values


class CONFIG(GPScheduler):
    """CONFIG (Xu et al., ICML 2023, arXiv 2211.00162): an optimist in energy and in the limits.

    Once no arm has lower bounds within the limits, none can meet them, as surely as the bounds
    hold; the arm that is least beyond them is then taken.
    """

    name: ClassVar[str] = "config"

    def _choose(self, cells: Indices, now: float) -> Choice:
        self._forget(now)
        hopeful = cells[self.possible()[cells]]
        if not len(hopeful):
            return self._least_beyond(cells)
        cell = int(hopeful[least(self.lower(self.objective)[hopeful])])
        return self._choice(cell, "least energy bound that may be feasible", cells)


class PrimalDual(GPScheduler):
    """A price on excess, raised while what is chosen is beyond (Zhou and Ji, NeurIPS 2022).

    Beyond by its lower bound, so that the optimist pays only for what is surely too much.

    Parameters
    ----------
    step
        By how much of the excess, in logs, of the arm that is chosen the price moves.
    dearest
        Highest price: energy, in logs, that one log of excess is worth.
    """

    name: ClassVar[str] = "primal-dual"
    STATE: ClassVar[tuple[str, ...]] = ("prices",)

    def __init__(
        self, space: ArmSpace, *, step: float = 1.0, dearest: float = 100.0, **common: Any
    ) -> None:
        super().__init__(space, **common)
        for name, value in (("step", step), ("dearest", dearest)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected above 0")
        self.step, self.dearest = step, dearest
        self.prices: Values = dict.fromkeys(self.limits, 0.0)

    def _choose(self, cells: Indices, now: float) -> Choice:
        self._forget(now)
        if not self.possible()[cells].any():
            return self._least_beyond(cells)
        cost = self.lower(self.objective)[cells]
        for name, limit in self._log_limits.items():
            cost = cost + self.prices[name] * (self.lower(name)[cells] - limit)
        cell = int(cells[least(cost)])
        for name, limit in self._log_limits.items():
            moved = self.prices[name] + self.step * float(self.lower(name)[cell] - limit)
            self.prices[name] = min(max(moved, 0.0), self.dearest)
        return self._choice(cell, "least energy bound plus the price of excess", cells)
