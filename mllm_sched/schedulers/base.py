"""One interface for every scheduler: ask for an arm, tell what it took."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.schedulers.beliefs import Beliefs
from mllm_sched.schedulers.decision import Choice, Decision
from mllm_sched.schedulers.incomplete import IncompleteRuns, Values, told_bounds, told_values
from mllm_sched.schedulers.limits import checked_limits, log_limits
from mllm_sched.schedulers.warm_start import rows

Indices = NDArray[np.int64]
Context = Mapping[str, Level]
NONE: Indices = np.zeros(0, dtype=np.int64)


class Scheduler(IncompleteRuns, Beliefs):
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
    STATE: ClassVar[tuple[str, ...]] = (
        *("rng", "steps", "plays", "_open", "_next_id", "_charged", "_latest"),
    )

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
        super().__init__(objective, checked_limits(limits))
        self._log_limits = log_limits(self.limits)
        self.space = space
        self.quantities = tuple(dict.fromkeys([objective, *limits]))
        self.seeds: Indices = np.array([space.index(arm) for arm in seeds], dtype=np.int64)
        self.rng = np.random.default_rng(rng)
        self.contexts = ArmSpace(contexts) if contexts else None
        self.joint = _joint(tuple(contexts), space.factors) if contexts else space  # cells as arms
        self.cells = len(self.joint)
        self.steps = 0  # measurements told so far
        self.plays = np.zeros(self.cells, dtype=np.int64)  # the same, of each cell
        self._all_arms: Indices = np.arange(len(space))
        self._open: dict[int, int] = {}  # decision id -> cell
        self._next_id = 0
        self._charged: dict[int, float] = {}  # decision id -> what ``_charge`` noted for it
        self._latest = 0.0  # latest time that was said

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
            Time in the unit of the forgetting rate; by default the number of tasks told, or the
            latest time that was said.
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
        told = self.would_learn(decision_id, failed=failed, above=above, **quantities)
        cell, values, bounds = told
        del self._open[decision_id]
        self._charged.pop(decision_id, None)
        self._observe(cell, values, bounds, self._time(now))
        self.steps += 1
        self.plays[cell] += 1

    def would_learn(
        self,
        decision_id: int,
        *,
        failed: str = "",
        above: Mapping[str, float] | None = None,
        **quantities: float,
    ) -> tuple[int, Values, Values]:
        """The cell, values and bounds that ``tell`` would learn; nothing is changed.

        Raises
        ------
        ValueError
            As ``tell`` does.
        """
        cell = self._cell_of(decision_id)
        bounds = told_bounds(self.quantities, above or {}, quantities)
        values = {} if failed else told_values(self.quantities, quantities, partial=bool(bounds))
        return cell, values, {} if failed else bounds

    def cancel(self, decision_id: int) -> None:
        """The arm of that decision never ran, so nothing is learned of it.

        Raises ValueError for an unknown or finished decision.
        """
        self._cell_of(decision_id)
        del self._open[decision_id]
        self._refund(self._charged.pop(decision_id, 0.0))

    def change_limits(self, limits: Mapping[str, float]) -> None:
        """Other limits on the same quantities, from the next decision on; what is known stays."""
        if set(limits) != set(self.limits):
            raise ValueError(
                f"limits on {', '.join(limits)}: expected one on each of {', '.join(self.limits)}"
            )
        self.limits = {name: checked_limits(limits)[name] for name in self.limits}
        self._log_limits = log_limits(self.limits)
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
            measurement. 0: it is the same board, and every row counts, as far as the rule learns
            from so many.
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
        self._charged = {int(decision): risk for decision, risk in state["_charged"].items()}

    @property
    def changes(self) -> int:
        """How often the rule noticed, since it was made, that an arm is not what it was."""
        return 0

    @abstractmethod
    def _choose(self, cells: Indices, now: float) -> Choice:
        """Pick one of these cells; ties break to the lowest index."""

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        """Take in a row of another table; ``values`` is empty where the run failed."""
        self._observe(cell, values, {}, self._time(None))

    def _charge(self, amount: float) -> None:
        """Note what the decision that is being made takes of a budget."""
        self._charged[self._next_id] = amount

    def _refund(self, amount: float) -> None:
        """Called with what a cancelled decision took."""

    def _limits_changed(self) -> None:
        """Called when ``limits`` has new values."""

    def _trusted_cells(self) -> NDArray[np.bool_]:
        """Whether the arm of each cell is a seed, shape (cells,); ValueError if there is none."""
        if not len(self.seeds):
            raise ValueError(f"seeds=[]: {self.name} needs at least one arm trusted to be safe")
        return np.isin(np.arange(self.cells) % len(self.space), self.seeds)

    def _running(self) -> Indices:
        """Cells of the runs that were not learned yet, in the order they were asked."""
        if not (self._open or self._held):
            return NONE
        cells = [*self._open.values(), *(cell for cell, _ in self._held)]
        return np.array(cells, dtype=np.int64)

    def _cell_of(self, decision_id: int) -> int:
        if decision_id not in self._open:
            state = "finished" if 0 <= decision_id < self._next_id else "unknown"
            raise ValueError(f"decision {decision_id}: {state}; open decisions: {[*self._open]}")
        return self._open[decision_id]

    def _time(self, now: float | None) -> float:
        if now is None:
            return max(float(self.steps), self._latest)
        self._latest = max(self._latest, float(now))
        return float(now)


@lru_cache(maxsize=16)
def _joint(contexts: tuple[Factor, ...], factors: tuple[Factor, ...]) -> ArmSpace:
    """One space for all schedulers of alike boards, of which a study may have thousands."""
    return ArmSpace([*contexts, *factors])
