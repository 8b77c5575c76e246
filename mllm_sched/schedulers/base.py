"""One interface for every scheduler: ask for an arm, tell what it took."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.measurement import check_quantity

Indices = NDArray[np.int64]
Context = Mapping[str, Level]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule picked: a cell, why, and how sure it is that the limits hold."""

    cell: int
    reason: str
    certified: bool = False
    p_feasible: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """An arm to run now.

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
    """

    id: int
    arm: Arm
    reason: str
    certified: bool
    p_feasible: float | None


class Scheduler(ABC):
    """Chooses arms, one decision at a time.

    A rule sees *cells*: cell = context x number of arms + arm. Without contexts a cell is an arm.

    Parameters
    ----------
    space
        The arms.
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
        if not limits:
            raise ValueError("limits={}: give at least one, for example {'latency_s': 0.2}")
        self.space = space
        self.objective = objective
        self.limits = {name: check_quantity(f"limit {name}", limits[name]) for name in limits}
        self.quantities = tuple(dict.fromkeys([objective, *limits]))
        self.seeds: Indices = np.array([space.index(arm) for arm in seeds], dtype=np.int64)
        self.rng = np.random.default_rng(rng)
        self.contexts = ArmSpace(contexts) if contexts else None
        self.cells = len(space) * (len(self.contexts) if self.contexts else 1)
        self.steps = 0  # measurements told so far
        self._all_arms: Indices = np.arange(len(space))
        self._pending: dict[int, int] = {}  # decision id -> cell
        self._next_id = 0

    def ask(
        self,
        context: Context | None = None,
        available: Iterable[Arm] | None = None,
        now: float | None = None,
    ) -> Decision:
        """The arm to run next.

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
        )
        self._pending[decision.id] = choice.cell
        self._next_id += 1
        return decision

    def tell(
        self, decision_id: int, *, failed: str = "", now: float | None = None, **quantities: float
    ) -> None:
        """What the arm of that decision took.

        Decisions may be told in any order. Give every quantity of the objective and the limits,
        or the reason in ``failed``. Quantities the rule has no use for are checked and ignored.

        Raises
        ------
        ValueError
            For an unknown or finished decision, or a value that is missing, NaN or not above 0.
            The decision then stays open and can be told again.
        """
        if decision_id not in self._pending:
            state = "unknown" if decision_id >= self._next_id or decision_id < 0 else "finished"
            raise ValueError(
                f"decision {decision_id}: {state}; open decisions: {sorted(self._pending)}"
            )
        values = None if failed else self._values(quantities)
        cell = self._pending.pop(decision_id)
        self._observe(cell, values, self._time(now))
        self.steps += 1

    def warm_start(self, table: pd.DataFrame) -> None:
        """Learn from measurements made before; every factor of the space must be a column."""
        missing = [name for name in self.space.names if name not in table]
        if missing:
            raise ValueError(f"warm start: the table lacks the factors {', '.join(missing)}")
        for row in table.to_dict("records"):
            arm = self.space.arm(**{name: row[name] for name in self.space.names})
            failed = bool(row.get("failed"))
            values = None if failed else self._values({q: row[q] for q in self.quantities})
            context = {name: row[name] for name in self.contexts.names} if self.contexts else None
            self._observe(arm.index + self._offset(context), values, self._time(None))

    @abstractmethod
    def _choose(self, cells: Indices, now: float) -> Choice:
        """Pick one of these cells; ties break to the lowest index."""

    @abstractmethod
    def _learn(self, cell: int, values: tuple[float, ...], now: float) -> None:
        """Take in one value per quantity, in the order of ``quantities``."""

    def _fail(self, cell: int, now: float) -> None:
        """Take in a failed run: by default as twice every limit, and the worst objective known."""
        self._learn(cell, self._failure_values(), now)

    def _observe(self, cell: int, values: tuple[float, ...] | None, now: float) -> None:
        if values is None:
            self._fail(cell, now)
        else:
            self._worst_objective = max(self._worst_objective, values[0])
            self._learn(cell, values, now)

    _worst_objective = 0.0

    def _failure_values(self) -> tuple[float, ...]:
        worst = self._worst_objective or 1.0
        return tuple(2 * self.limits[q] if q in self.limits else worst for q in self.quantities)

    def _values(self, quantities: Mapping[str, Any]) -> tuple[float, ...]:
        missing = [name for name in self.quantities if name not in quantities]
        if missing:
            raise ValueError(f"tell: no value for {', '.join(missing)}; or say failed='why'")
        for name, value in quantities.items():
            check_quantity(name, value)
        return tuple(float(quantities[name]) for name in self.quantities)

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
