"""What a rule picks, what the caller is handed, and how scores are compared.

Scores tie to nine decimals and the first wins, so that decisions are the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_sched.arms import Arm

Intervals = Mapping[str, tuple[float, float]]  # of one arm, in the unit of each quantity

# Scores, logs of quantities mostly, decide to nine decimals: processors and libraries differ from
# the 13th on, and arms that are alike by symmetry have to tie everywhere. Comparisons with a number
# that no symmetry meets, such as a budget or a probability, stay exact.
DECIMALS = 9


def least(scores: ArrayLike) -> int:
    """Index of the least score; equal to within rounding is a tie, which the first one wins.

    Examples
    --------
    >>> least([2.0, 0.1 + 0.2, 0.3])
    1
    """
    return int(np.round(np.asarray(scores), DECIMALS).argmin())


def greatest(scores: ArrayLike) -> int:
    """Index of the greatest score; ties as in ``least``."""
    return int(np.round(np.asarray(scores), DECIMALS).argmax())


def within(scores: ArrayLike, limit: float) -> NDArray[np.bool_]:
    """Whether each score is at most the limit, or equal to it within rounding."""
    return np.asarray(scores) <= limit + 0.5 * 10.0**-DECIMALS


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule picked: a cell and what it knows of it; see ``Decision``."""

    cell: int
    reason: str
    certified: bool = False
    p_feasible: float | None = None
    bounds: Intervals = field(default_factory=dict)
    safe_arms: int | None = None
    infeasible: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """An arm to run now, and why.

    Attributes
    ----------
    id
        Hand it back to ``tell``.
    arm
        What to run.
    reason
        One short phrase: why this arm.
    certified
        Whether the rule holds the arm to be within every limit.
    p_feasible
        The rule's probability that it is, if the rule has one.
    bounds
        Where the rule believes the true mean of each quantity of this arm to be, in the unit of
        its name; empty for a rule without bounds.
    safe_arms
        How many of the arms that could be chosen are certified, if the rule certifies any.
    infeasible
        The verdict that none of them can meet the limits. The arm is then the one that the rule
        believes to be least beyond them; bandits that know costs alone choose as always.

    Examples
    --------
    >>> from mllm_sched import ArmSpace, make_scheduler
    >>> space = ArmSpace.agx_orin()
    >>> scheduler = make_scheduler("fixed", space, limits={"latency_s": 0.2}, seeds=[space[59]])
    >>> print(scheduler.ask())
    component=dla, power_w=60, load=1.0: fixed
    """

    id: int
    arm: Arm
    reason: str
    certified: bool
    p_feasible: float | None
    bounds: Intervals
    safe_arms: int | None
    infeasible: bool

    def __str__(self) -> str:
        parts = [f"{self.arm}: {self.reason}"]
        if self.p_feasible is not None:
            parts.append(f"within the limits with probability {self.p_feasible:.3f}")
        parts += [f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.bounds.items()]
        if self.safe_arms is not None:
            parts.append(f"{self.safe_arms} arms certified")
        return "; ".join(parts)


def from_logs(log_low: float, log_high: float) -> tuple[float, float]:
    """Bounds of a value from those of its log; what no number can hold is infinite."""
    return math.exp(min(log_low, 700.0)), math.exp(log_high) if log_high < 700.0 else math.inf
