"""Safe GP-UCB: least energy among the arms that are surely fast enough (the paper's rule).

One Gaussian process per quantity, on its logarithm. With bounds l, u = mean -/+ sqrt(beta) sd:

    safe set   S = {arm: u_latency(arm) <= limit} and the trusted seed arms
    choice     argmin over S of l_energy

The form is that of EdgeBOL (CoNEXT 2021), a special case of the safe rules that began with
SafeOpt (arXiv:1602.04450).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices
from mllm_sched.schedulers.decision import Choice, greatest, least
from mllm_sched.schedulers.gp_scheduler import GPScheduler


class SafeGPUCB(GPScheduler):
    """The paper's scheduler.

    Parameters
    ----------
    **common
        See ``GPScheduler`` and ``Scheduler``. At least one seed arm is needed.

    Notes
    -----
    A seed arm is trusted until its own lower bound is above a limit. When no arm is certified or
    trusted, the rule falls back to the arm most likely to be within the limits; and when the lower
    bounds of all are above a limit, to the one that is least beyond.
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
