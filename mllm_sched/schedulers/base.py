"""One interface for every scheduler: ask for an arm, tell what it took."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.measurement import check_quantity
from mllm_sched.schedulers.decision import Choice, Decision
from mllm_sched.schedulers.state import Stateful
from mllm_sched.schedulers.warm_start import rows

Indices = NDArray[np.int64]
Context = Mapping[str, Level]
Values = dict[str, float]

TWICE = 2.0  # times every limit: what a failed run counts as


class Scheduler(Stateful, ABC):
    """Chooses arms, one decision at a time.

    A rule sees *cells*: cell = context x number of arms + arm. Without contexts a cell is an arm.

    Parameters
    ----------
    space
        The arms: all that may ever be there. Which of them can run now is said with each ``ask``.
    objective
        The quantity to minimise.
    limits
        Upper limit of each constrained quantity, for example ``{"latency_s": 0.2}``.
    seeds
        Arms trusted to be within the limits before anything is known.
    rng
        Seed or generator; all randomness of the rule comes from it.
    contexts
        Factors that are given with each task instead of chosen.
    """

    name: ClassVar[str]
    STATE: ClassVar[tuple[str, ...]] = ("rng", "steps", "_open", "_next_id", "_worst_objective")

    def __init__(
        self,
        space: ArmSpace,
        *,
        objective: str = "energy_j",
        limits: Mapping[str, float],
        seeds: Iterable[Arm] = (),
        rng: int | np.random.Generator = 0,
        contexts: Sequence[Factor] = (),
    ) -> None:
        self.space = space
        self.objective = objective
        self.limits = _checked(limits)
        self.quantities = tuple(dict.fromkeys([objective, *limits]))
        self.seeds: Indices = np.array([space.index(arm) for arm in seeds], dtype=np.int64)
        self.rng = np.random.default_rng(rng)
        self.contexts = ArmSpace(contexts) if contexts else None
        self.joint = ArmSpace([*contexts, *space.factors])  # cells as arms
        self.cells = len(self.joint)
        self.steps = 0  # measurements told so far
        self._all_arms: Indices = np.arange(len(space))
        self._open: dict[int, int] = {}  # decision id -> cell
        self._next_id = 0
        self._worst_objective = 0.0

    def ask(
        self,
        context: Context | None = None,
        available: Iterable[Arm] | None = None,
        now: float | None = None,
    ) -> Decision:
        """The arm to run next. Others may still be running; their rules reckon with them.

        Parameters
        ----------
        context
            A level for every context factor, if the scheduler was made with any.
        available
            The arms that can run now; all by default.
        now
            Time in the unit of the forgetting rate; by default the number of tasks told.
        """
        offset = self._offset(context)
        arms = self._all_arms
        if available is not None:
            arms = np.unique([self.space.index(arm) for arm in available]).astype(np.int64)
            if not len(arms):
                raise ValueError("available=[]: no arm to choose from")
        choice = self._choose(arms + offset if offset else arms, self._time(now))
        decision = Decision(
            self._next_id,
            self.space[choice.cell - offset],
            choice.reason,
            choice.certified,
            choice.p_feasible,
            choice.bounds,
            choice.safe_arms,
            choice.infeasible,
        )
        self._open[decision.id] = choice.cell
        self._next_id += 1
        return decision

    def tell(
        self,
        decision_id: int,
        *,
        failed: str = "",
        above: Mapping[str, float] | None = None,
        now: float | None = None,
        **quantities: float,
    ) -> None:
        """What the arm of that decision took.

        Decisions may be told in any order, and late. Give every quantity of the objective and the
        limits, or the reason in ``failed``. Quantities the rule has no use for are checked and
        ignored.

        Parameters
        ----------
        decision_id
            ``Decision.id``.
        failed
            Why there is no result.
        above
            For a run that was stopped: what is only known to be more than this, for example
            ``{"latency_s": 2.0}``. Quantities that nobody measured may then be left out.
        now
            When it was measured; by default now.
        **quantities
            As measured.

        Raises
        ------
        ValueError
            For an unknown or finished decision, or a value that is missing, NaN or not above 0.
            The decision then stays open and can be told again.
        """
        cell = self._cell_of(decision_id)
        bounds = self._bounds(above or {}, quantities)
        values = {} if failed else self._values(quantities, partial=bool(bounds))
        del self._open[decision_id]
        self._observe(cell, values, {} if failed else bounds, self._time(now))
        self.steps += 1

    def cancel(self, decision_id: int) -> None:
        """The arm of that decision never ran, so nothing is learned of it.

        Raises ValueError for an unknown or finished decision.
        """
        self._cell_of(decision_id)
        del self._open[decision_id]

    def change_limits(self, limits: Mapping[str, float]) -> None:
        """Other limits on the same quantities, from the next decision on; what is known stays."""
        if set(limits) != set(self.limits):
            raise ValueError(
                f"limits on {', '.join(limits)}: expected one on each of {', '.join(self.limits)}"
            )
        self.limits = {name: _checked(limits)[name] for name in self.limits}
        self._limits_changed()

    def warm_start(self, table: pd.DataFrame, scatter: float = 0.0) -> None:
        """Learn from measurements made before; every factor of the space must be a column.

        Parameters
        ----------
        table
            Of measurements, as ``read_table`` returns it.
        scatter
            For a table of another board: how far its arms are from ours, as a standard deviation
            in logs; 0.2 means some 20 %. All that it says of an arm then counts as one vague
            measurement. 0: it is the same board, and every row counts.
        """
        if not 0 <= scatter < np.inf:
            raise ValueError(f"scatter={scatter}: expected 0 or more")
        missing = [name for name in (*self.joint.names, *self.quantities) if name not in table]
        if missing:
            raise ValueError(f"warm start: the table lacks the columns {', '.join(missing)}")
        for cell, values in rows(table, self.joint, self.quantities, merged=scatter > 0):
            self._recall(cell, values, scatter)

    def save(self, path: str | Path) -> Path:
        """Write all that is known to a file, from which ``load`` goes on to the last bit.

        An interrupted call leaves the file as it was. Raises ValueError if the scheduler holds
        something that no file can, such as a function.
        """
        from mllm_sched.schedulers.saving import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A scheduler as it was saved, open decisions and random numbers included.

        Raises
        ------
        StateError
            A ValueError, if the file is truncated, edited, of a newer version, no such file at
            all, or of another rule.
        """
        from mllm_sched.schedulers.saving import load

        return load(path, cls)

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``Stateful``; ids of decisions are numbers, which no key of a file is."""
        super().set_state(state)
        self._open = {int(decision): int(cell) for decision, cell in state["_open"].items()}

    @abstractmethod
    def _choose(self, cells: Indices, now: float) -> Choice:
        """Pick one of these cells; ties break to the lowest index."""

    @abstractmethod
    def _learn(self, cell: int, values: Values, now: float) -> None:
        """Take in what was measured, by quantity: all ``quantities``, but for censored runs."""

    def _fail(self, cell: int, now: float) -> None:
        """Take in a failed run: by default as twice every limit, and the worst objective known."""
        worst = {self.objective: self._worst_objective or 1.0}
        beyond = {name: TWICE * limit for name, limit in self.limits.items()}
        self._learn(cell, worst | beyond, now)

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        """Take in a stopped run: by default the bound as the value, the worst objective known."""
        worst = dict.fromkeys(self.quantities, 0.0)
        worst |= {self.objective: self._worst_objective or 1.0} | self.limits
        self._learn(cell, worst | values | above, now)

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        """Take in a row of another table; ``values`` is empty where the run failed."""
        self._observe(cell, values, {}, self._time(None))

    def _limits_changed(self) -> None:
        """Called when ``limits`` has new values."""

    def _running(self) -> Indices:
        """Cells of the decisions that are still open, in the order they were asked."""
        return np.fromiter(self._open.values(), dtype=np.int64, count=len(self._open))

    def _observe(self, cell: int, values: Values, above: Values, now: float) -> None:
        if self.objective in values:
            self._worst_objective = max(self._worst_objective, values[self.objective])
        if above:
            self._censor(cell, values, above, now)
        elif values:
            self._learn(cell, values, now)
        else:
            self._fail(cell, now)

    def _cell_of(self, decision_id: int) -> int:
        if decision_id not in self._open:
            state = "finished" if 0 <= decision_id < self._next_id else "unknown"
            raise ValueError(f"decision {decision_id}: {state}; open decisions: {[*self._open]}")
        return self._open[decision_id]

    def _values(self, quantities: Mapping[str, Any], *, partial: bool = False) -> Values:
        missing = [name for name in self.quantities if name not in quantities]
        if missing and not partial:
            raise ValueError(f"tell: no value for {', '.join(missing)}; or say failed='why'")
        checked = {name: check_quantity(name, value) for name, value in quantities.items()}
        return {name: checked[name] for name in self.quantities if name in checked}

    def _bounds(self, above: Mapping[str, float], quantities: Mapping[str, float]) -> Values:
        twice = sorted(set(above) & set(quantities))
        if twice:
            raise ValueError(f"tell: {', '.join(twice)} both as measured and in above=")
        bounds = {name: check_quantity(f"above {name}", value) for name, value in above.items()}
        return {name: bounds[name] for name in self.quantities if name in bounds}

    def _offset(self, context: Context | None) -> int:
        if self.contexts is None:
            if context:
                raise ValueError(f"context={dict(context)}: made without contexts=[Factor(...)]")
            return 0
        if context is None:
            raise ValueError(f"context=None: expected a level for {', '.join(self.contexts.names)}")
        return self.contexts.arm(**context).index * len(self.space)

    def _time(self, now: float | None) -> float:
        return float(self.steps) if now is None else now


def _checked(limits: Mapping[str, float]) -> Values:
    if not limits:
        raise ValueError("limits={}: give at least one, for example {'latency_s': 0.2}")
    return {name: check_quantity(f"limit {name}", limit) for name, limit in limits.items()}
