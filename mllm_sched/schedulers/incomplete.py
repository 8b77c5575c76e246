"""What a run that failed or was stopped counts as, for rules that want a value of everything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mllm_sched.measurement import check_quantity
from mllm_sched.schedulers.state import Stateful

Values = dict[str, float]

TWICE = 2.0  # times every limit: what a failed run counts as


class IncompleteRuns(Stateful, ABC):
    """Hands what was observed of a run to the rule, completed where it has to be.

    Parameters
    ----------
    objective, limits
        See ``Scheduler``.
    """

    STATE: ClassVar[tuple[str, ...]] = ("_worst_objective", "_held")

    def __init__(self, objective: str, limits: Values) -> None:
        self.objective, self.limits = objective, limits
        self._worst_objective = 0.0
        self._held: list[list[Any]] = []  # cells and values that wait for a worst objective

    @abstractmethod
    def _learn(self, cell: int, values: Values, now: float) -> None:
        """Take in what was measured, by quantity: all ``quantities``, but for censored runs."""

    def _observe(self, cell: int, values: Values, above: Values, now: float) -> None:
        if self.objective in values:
            self._worst_objective = max(self._worst_objective, values[self.objective])
            held, self._held = self._held, []
            for other, known in held:
                self._learn_at_worst(other, known, now)
        if above:
            self._censor(cell, values, above, now)
        elif values:
            self._learn(cell, values, now)
        else:
            self._fail(cell, now)

    def _fail(self, cell: int, now: float) -> None:
        """Take in a failed run: by default as twice every limit, and the worst objective known."""
        self._learn_at_worst(cell, self._beyond_all(), now)

    def _beyond_all(self) -> Values:
        """What a failed run counts as."""
        return {name: TWICE * limit for name, limit in self.limits.items()}

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        """Take in a stopped run: by default its bounds as the values, the worst objective known.

        A run that was stopped at a limit did not meet it, and counts as twice the limit, like a
        failed one. A limited quantity of which nothing is said counts as the limit.
        """
        bounds = {
            name: max(bound, TWICE * self.limits[name])
            if bound >= self.limits.get(name, np.inf)
            else bound
            for name, bound in above.items()
        }
        self._learn_at_worst(cell, {**self.limits, **values, **bounds}, now)

    def _learn_at_worst(self, cell: int, values: Values, now: float) -> None:
        """With the worst objective known where there is none; wait for one as long as none is."""
        if self.objective in values:
            self._learn(cell, values, now)
        elif self._worst_objective:
            self._learn(cell, {self.objective: self._worst_objective, **values}, now)
        else:
            self._held.append([cell, values])


def told_values(names: Sequence[str], quantities: Mapping[str, Any], *, partial: bool) -> Values:
    """The named quantities of a run, checked; ValueError if one is missing and all are wanted."""
    checked = {name: check_quantity(name, value) for name, value in quantities.items()}
    told = {name: checked[name] for name in names if name in checked}
    if len(told) < len(names) and not partial:
        missing = ", ".join(name for name in names if name not in told)
        raise ValueError(f"tell: no value for {missing}; or say failed='why'")
    return told


def told_bounds(
    names: Sequence[str], above: Mapping[str, float], quantities: Mapping[str, float]
) -> Values:
    """What a stopped run is known to be above, checked; ValueError if it was measured as well."""
    if not above:
        return {}
    twice = sorted(set(above) & set(quantities))
    if twice:
        raise ValueError(f"tell: {', '.join(twice)} both as measured and in above=")
    bounds = {name: check_quantity(f"above {name}", value) for name, value in above.items()}
    return {name: bounds[name] for name in names if name in bounds}
