"""One interface for every scheduler: ask for an arm, tell what it took.

A run may end well, fail, or be stopped above some bound. What the last two count as, for schedulers
that want a value of every quantity, is decided here.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.atomic_io import write_whole
from mllm_sched.measurement import check_quantity
from mllm_sched.schedulers.decision import Choice, Decision, from_logs
from mllm_sched.schedulers.persistence import (
    StateError,
    factor_words,
    pack,
    plain,
    restored,
    unpack,
)
from mllm_sched.schedulers.state import Stateful

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Context = Mapping[str, Level]
Values = dict[str, float]  # by quantity
LogBounds = dict[str, tuple[Array, Array]]  # by quantity: lower and upper bounds of its log
NONE: Indices = np.zeros(0, dtype=np.int64)
TWICE = 2.0  # times every limit: what a failed run counts as
SCHEDULERS: dict[str, type[Scheduler]] = {}  # by name; ``registry.py`` enters them


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
    STATE: ClassVar[tuple[str, ...]] = (
        *("rng", "steps", "plays", "_open", "_next_id", "_charged", "_latest"),
        *("_worst_objective", "_held"),
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
        self.objective, self.limits = objective, checked_limits(limits)
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
        self._worst_objective = 0.0  # what a run counts as that failed
        self._held: list[list[Any]] = []  # cells and values that wait for a worst objective

    def ask(
        self,
        context: Context | None = None,
        available: Iterable[Arm] | None = None,
        now: float | None = None,
    ) -> Decision:
        """The arm to run next. Rules that can, allow for the arms that still run.

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
        offset = self._first_cell(context)
        arms = self._all_arms
        if available is not None:
            arms = np.unique([self.space.index(arm) for arm in available]).astype(np.int64)
            if not len(arms):
                raise ValueError("available=[]: no arm to choose from")
        choice = self._choose(arms + offset if offset else arms, self._note_time(now))
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
        self._observe(cell, values, bounds, self._note_time(now))
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

    def belief_table(self, context: Mapping[str, Level] | None = None) -> pd.DataFrame:
        """What is believed of every arm now. Looking changes nothing.

        Parameters
        ----------
        context
            As for ``ask``.

        Returns
        -------
        One row an arm, in the order of the space: ``arm`` (index); for each quantity, such as
        ``energy_j``, ``energy_j_low`` and ``energy_j_high``, between which the rule believes its
        true mean to be (NaN where it has no belief); ``certified``; ``plays`` (runs told so far).
        A rule that keeps means alone has both bounds there.

        Examples
        --------
        >>> from mllm_sched import make_scheduler
        >>> space = ArmSpace.agx_orin()
        >>> rule = make_scheduler("ucb", space, limits={"latency_s": 0.2})
        >>> rule.tell(rule.ask().id, energy_j=3.2, latency_s=0.13)
        >>> rule.belief_table().loc[0, ["energy_j_low", "energy_j_high", "plays"]].round(3).tolist()
        [3.2, 3.2, 1.0]
        """
        arms = np.arange(len(self.space))
        cells = arms + self._first_cell(context)
        nothing = (np.full(len(arms), np.nan),) * 2
        bounds, columns = self._believed(cells), {}
        for name in self.quantities:
            low, high = bounds.get(name, nothing)
            with np.errstate(over="ignore"):  # what no number can hold is infinite
                columns[f"{name}_low"], columns[f"{name}_high"] = np.exp(low), np.exp(high)
        certified = self._certified_cells()[cells]
        return pd.DataFrame(
            {"arm": arms, **columns, "certified": certified, "plays": self.plays[cells]}
        )

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
        for cell, values in rows_of(table, self.joint, self.quantities, merged=scatter > 0):
            self._recall(cell, values, scatter)

    def save(self, path: str | Path) -> Path:
        """Write all that is known to a file, from which ``load`` goes on to the last bit.

        An interrupted call leaves the file as it was. Raises ValueError if the scheduler holds
        something that no file can, such as a function.
        """
        write_whole(Path(path), self.to_bytes())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A scheduler as it was saved, open decisions and random numbers included.

        Raises
        ------
        StateError
            A ValueError, if the file is truncated, edited, of a newer version, no such file at
            all, or of another rule.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}") from error
        return cls.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """What ``save`` writes."""
        contexts = self.contexts.factors if self.contexts else ()
        made = {
            "factors": [factor_words(factor) for factor in self.space.factors],
            "contexts": [factor_words(factor) for factor in contexts],
            "objective": self.objective,
            "limits": dict(self.limits),
            "seeds": self.seeds.tolist(),
            "settings": {name: plain(getattr(self, name)) for name in self._settings()},
        }
        return pack(self.name, made, self.state())

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "these bytes") -> Self:
        """The scheduler in what ``to_bytes`` made; errors call it by its ``path``."""
        name, made, state = unpack(data, path)
        kind = SCHEDULERS.get(name)
        if kind is None:
            raise StateError(f"{path}: holds the unknown scheduler {name!r}")
        if not issubclass(kind, cls):
            raise StateError(f"{path}: holds the scheduler {name!r}, not {cls.name!r}")
        try:
            space = ArmSpace([Factor(**factor) for factor in made["factors"]])
            scheduler = kind(
                space,
                objective=made["objective"],
                limits=made["limits"],
                seeds=[space[seed] for seed in made["seeds"]],
                contexts=[Factor(**factor) for factor in made["contexts"]],
                **{name: restored(value, space) for name, value in made["settings"].items()},
            )
            scheduler.set_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path}: does not fit this version of {name}: {error}") from error
        return scheduler

    @classmethod
    def _settings(cls) -> Iterator[str]:
        """Names of a rule's own settings: keywords of its classes, without those of all rules."""
        for base in cls.__mro__[: cls.__mro__.index(Scheduler)]:
            if "__init__" in vars(base):
                for parameter in inspect.signature(base).parameters.values():
                    if parameter.kind is parameter.KEYWORD_ONLY:
                        yield parameter.name

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

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        """Take in a row of another table; ``values`` is empty where the run failed."""
        self._observe(cell, values, {}, self._note_time(None))

    def _charge(self, amount: float) -> None:
        """Note what the decision that is being made takes of a budget."""
        self._charged[self._next_id] = amount

    def _refund(self, amount: float) -> None:
        """Called with what a cancelled decision took."""

    def _limits_changed(self) -> None:
        """Called when ``limits`` has new values."""

    def _bounds_of(self, cell: int) -> dict[str, tuple[float, float]]:
        """Between which values each quantity of a cell is believed to be."""
        believed = self._believed(np.array([cell]))
        return {
            name: from_logs(float(low[0]), float(high[0])) for name, (low, high) in believed.items()
        }

    def _believed(self, cells: NDArray[np.int64]) -> LogBounds:
        """Bounds of the logs of the quantities of some cells; nothing by default."""
        return {}

    def _certified_cells(self) -> NDArray[np.bool_]:
        """Whether the rule holds each cell to be within every limit, shape (cells,)."""
        return np.zeros(len(self.plays), dtype=bool)

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

    def _first_cell(self, context: Mapping[str, Level] | None) -> int:
        """First cell of a context."""
        if self.contexts is None:
            if context:
                raise ValueError(f"context={dict(context)}: made without contexts=[Factor(...)]")
            return 0
        if context is None:
            raise ValueError(f"context=None: expected a level for {', '.join(self.contexts.names)}")
        return self.contexts.arm(**context).index * len(self.space)

    def _note_time(self, now: float | None) -> float:
        """The time to go by; remembers the latest that was said."""
        if now is None:
            return max(float(self.steps), self._latest)
        self._latest = max(self._latest, float(now))
        return float(now)


def checked_limits(limits: Mapping[str, float]) -> Values:
    """The limits as numbers; ValueError if there are none, or one is not finite and above 0."""
    if not limits:
        raise ValueError("limits={}: give at least one, for example {'latency_s': 0.2}")
    return {name: check_quantity(f"limit {name}", limit) for name, limit in limits.items()}


def log_limits(limits: Values) -> Values:
    """Logs of checked limits."""
    return {name: math.log(limit) for name, limit in limits.items()}


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


def rows_of(
    table: pd.DataFrame, cells: ArmSpace, quantities: Sequence[str], *, merged: bool
) -> list[tuple[int, dict[str, float]]]:
    """Cell and values of every run; no values where it failed.

    Parameters
    ----------
    table
        With a column for every factor of the cells and every quantity.
    cells
        Contexts and arms.
    quantities
        What to take from the table.
    merged
        Make one run of all on the same cell: their geometric mean, or a failure if all failed.

    Raises
    ------
    ValueError
        For a level that the cells do not have, or a value that is not above 0.
    """
    runs = [
        (
            cells.arm(**{name: row[name] for name in cells.names}).index,
            {} if _failed(row) else {name: check_quantity(name, row[name]) for name in quantities},
        )
        for row in table.to_dict("records")
    ]
    if not merged:
        return runs
    by_cell: dict[int, list[dict[str, float]]] = {}
    for cell, values in runs:
        by_cell.setdefault(cell, []).append(values)
    return [(cell, _mean([v for v in values if v])) for cell, values in by_cell.items()]


def _failed(row: dict[str, object]) -> bool:
    """An empty reason reads as NaN from a file."""
    reason = row.get("failed")
    return bool(reason) and not pd.isna(reason)


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    """Geometric mean of every quantity; nothing of nothing."""
    if not runs:
        return {}
    return {name: float(np.exp(np.mean(np.log([run[name] for run in runs])))) for name in runs[0]}


@lru_cache(maxsize=16)
def _joint(contexts: tuple[Factor, ...], factors: tuple[Factor, ...]) -> ArmSpace:
    """One space for all schedulers of alike boards, of which a study may have thousands."""
    return ArmSpace([*contexts, *factors])
