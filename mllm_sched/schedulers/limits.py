"""Upper limits of quantities, as a scheduler takes them in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mllm_sched.measurement import check_quantity
from mllm_sched.schedulers.incomplete import Values


def checked_limits(limits: Mapping[str, float]) -> Values:
    """The limits as numbers; ValueError if there are none, or one is not finite and above 0."""
    if not limits:
        raise ValueError("limits={}: give at least one, for example {'latency_s': 0.2}")
    return {name: check_quantity(f"limit {name}", limit) for name, limit in limits.items()}


def log_limits(limits: Values) -> Values:
    """Logs of checked limits."""
    return {name: math.log(limit) for name, limit in limits.items()}
