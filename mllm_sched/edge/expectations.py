"""What a scheduler expects of tasks before the first of them comes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mllm_sched.edge.admission import ExpectedTimes
from mllm_sched.schedulers import Scheduler

SURE = 4.0  # upper to lower bound of a latency; a belief that is wider says nothing yet


def expected_of(scheduler: Scheduler, modalities: Iterable[str]) -> list[ExpectedTimes]:
    """Latency and energy of one item of each modality, on the trusted arm that takes least energy.

    Left out are modalities of which the scheduler is not sure: it has measured nothing like them,
    or it holds no beliefs at all.

    Examples
    --------
    >>> from mllm_sched import ArmSpace, make_scheduler
    >>> space = ArmSpace.agx_orin()
    >>> given = {"limits": {"latency_s": 0.2}, "seeds": [space[59]]}
    >>> rule = make_scheduler("adaptive-safe-gp", space, **given)
    >>> expected_of(rule, ["image"])
    []
    >>> rule.tell(rule.ask().id, latency_s=0.1, energy_j=2.0)
    >>> [(one.modality, round(one.latency_s, 1)) for one in expected_of(rule, ["image"])]
    [('image', 0.1)]
    """
    expected = (_of_modality(scheduler, modality) for modality in modalities)
    return [one for one in expected if one is not None]


def _of_modality(scheduler: Scheduler, modality: str) -> ExpectedTimes | None:
    given: dict[str, Any] = {"modality": modality, "batch": 1}
    contexts = scheduler.contexts
    context = {name: given[name] for name in contexts.names} if contexts else None
    trusted = scheduler.belief_table(context).loc[scheduler.seeds]
    sure = trusted[trusted["latency_s_high"] < SURE * trusted["latency_s_low"]]
    if sure.empty:
        return None
    energy_j = np.sqrt(sure["energy_j_low"] * sure["energy_j_high"]).fillna(math.inf)
    best = sure.loc[energy_j.idxmin()]
    latency_s = math.sqrt(best["latency_s_low"] * best["latency_s_high"])
    return ExpectedTimes(
        modality, latency_s, math.sqrt(best["energy_j_low"] * best["energy_j_high"])
    )
