"""Schedulers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers.adaptive_safe_gp import AdaptiveSafeGP
from mllm_sched.schedulers.bandits import (
    EXP3,
    UCB,
    ConstrainedUCB,
    DiscountedUCB,
    EpsilonGreedy,
    ProfileThenCommit,
    SlidingWindowUCB,
    Thompson,
)
from mllm_sched.schedulers.base import SCHEDULERS, Scheduler
from mllm_sched.schedulers.constrained_gp import (
    CONFIG,
    Conformal,
    EdgeBOL,
    GoOSE,
    PrimalDual,
    RiskBudget,
    SafeLinUCB,
    SafeOpt,
    SafeThompson,
    StageOpt,
)
from mllm_sched.schedulers.references import Fixed, Oracle, Random
from mllm_sched.schedulers.safe_gp_ucb import SafeGPUCB

_ALL: tuple[type[Scheduler], ...] = (
    *(SafeGPUCB, AdaptiveSafeGP),
    *(UCB, Thompson, EpsilonGreedy),
    *(Oracle, Random, Fixed),
    *(SafeOpt, StageOpt, GoOSE, SafeThompson, EdgeBOL, SafeLinUCB, Conformal, RiskBudget),
    *(CONFIG, PrimalDual),
    *(ConstrainedUCB, ProfileThenCommit, SlidingWindowUCB, DiscountedUCB, EXP3),
)
SCHEDULERS.update({scheduler.name: scheduler for scheduler in _ALL})


def scheduler_names() -> tuple[str, ...]:
    """Every name that ``make_scheduler`` knows."""
    return tuple(SCHEDULERS)


def make_scheduler(
    name: str,
    space: ArmSpace,
    *,
    objective: str = "energy_j",
    limits: Mapping[str, float],
    seeds: Iterable[Arm] = (),
    rng: int | np.random.Generator = 0,
    contexts: Sequence[Factor] = (),
    **settings: Any,
) -> Scheduler:
    """A scheduler by name.

    Parameters
    ----------
    name
        One of ``scheduler_names()``.
    space, objective, limits, seeds, rng, contexts
        See ``Scheduler``.
    **settings
        The scheduler's own; see its class.

    Raises
    ------
    ValueError
        For an unknown name, or arguments that the scheduler cannot work with.
    TypeError
        For a setting that the scheduler does not have.

    Examples
    --------
    >>> space = ArmSpace.agx_orin()
    >>> ucb = make_scheduler("ucb", space, limits={"latency_s": 0.2}, penalty=1.0)
    >>> decision = ucb.ask()
    >>> ucb.tell(decision.id, energy_j=3.2, latency_s=0.13)
    >>> decision.reason
    'not tried yet'
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: expected one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](
        space,
        objective=objective,
        limits=limits,
        seeds=seeds,
        rng=rng,
        contexts=contexts,
        **settings,
    )
