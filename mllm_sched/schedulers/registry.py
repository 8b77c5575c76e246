"""Schedulers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers import bandits, references
from mllm_sched.schedulers import constrained_gp as field
from mllm_sched.schedulers.adaptive_safe_gp import AdaptiveSafeGP
from mllm_sched.schedulers.base import SCHEDULERS, Scheduler
from mllm_sched.schedulers.safe_gp_ucb import SafeGPUCB

_ALL: tuple[type[Scheduler], ...] = (
    *(SafeGPUCB, AdaptiveSafeGP),
    *(bandits.UCB, bandits.Thompson, bandits.EpsilonGreedy),
    *(references.Oracle, references.Random, references.Fixed),
    *(field.SafeOpt, field.StageOpt, field.GoOSE, field.SafeThompson, field.EdgeBOL),
    *(field.SafeLinUCB, field.Conformal, field.RiskBudget, field.CONFIG, field.PrimalDual),
    *(bandits.ConstrainedUCB, bandits.ProfileThenCommit),
    *(bandits.SlidingWindowUCB, bandits.DiscountedUCB, bandits.EXP3),
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
    """A scheduler by name, one of ``scheduler_names()``; arguments are those of ``Scheduler``.

    ``settings`` are the scheduler's own; see its class. Raises ValueError for an unknown name, or
    arguments that the scheduler cannot work with; TypeError for a setting that it does not have.

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
