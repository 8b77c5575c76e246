"""One interface for every scheduler: ask for an arm, tell what it took, or that it failed."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mllm_sched.arms import Arm, ArmSpace, Factor, Level
from mllm_sched.atomic_io import write_whole
from mllm_sched.measurement import check_quantity
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
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]
Context = Mapping[str, Level]
Values = dict[str, float]  # by quantity
Intervals = Mapping[str, tuple[float, float]]  # of one arm, in the unit of each quantity
LogBounds = dict[str, tuple[Array, Array]]  # by quantity: lower and upper bounds of its log
NONE: Indices = np.zeros(0, dtype=np.int64)
TWICE = 2.0  # times every limit: what a failed run counts as
SCHEDULERS: dict[str, type[Scheduler]] = {}  # by name; ``registry.py`` enters them

# Scores, logs of quantities mostly, are compared to nine decimals: processors and libraries differ
# from the 13th on, and arms that are alike by symmetry have to tie everywhere. Comparisons with a
# number that no symmetry meets, such as a budget or a probability, stay exact.
ROUNDED = 1e9


def least(scores: ArrayLike) -> int:
    """Index of the least score; ties to nine decimals break to the lowest index.

    >>> least([2.0, 0.1 + 0.2, 0.3])
    1
    """
    return int(np.rint(np.asarray(scores) * ROUNDED).argmin())


def greatest(scores: ArrayLike) -> int:
    """Index of the greatest score; ties as in ``least``."""
    return int(np.rint(np.asarray(scores) * ROUNDED).argmax())


def within(scores: ArrayLike, limit: float) -> Mask:
    """Whether each score is at most the limit, or equal to it within rounding."""
    return np.asarray(scores) <= limit + 0.5 / ROUNDED


def from_logs(log_low: float, log_high: float) -> tuple[float, float]:
    """Bounds of a value from those of its log; overflow is infinite."""
    return math.exp(min(log_low, 700.0)), math.exp(log_high) if log_high < 700.0 else math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """An arm to run now, and why."""

    id: int  # for ``tell``
    arm: Arm
    reason: str  # in one short phrase
    certified: bool = False  # whether the scheduler holds the arm to be within every limit
    p_feasible: float | None = None  # with what probability
    # On the true mean of each quantity of this arm, in its unit; empty without a belief.
    bounds: Intervals = field(default_factory=dict)
    safe_arms: int | None = None  # certified ones of those available; None: it certifies none
    # The verdict that no arm can meet the limits. The arm then violates them least, but for bandits
    # that know costs alone.
    infeasible: bool = False

    def __str__(self) -> str:
        parts = [f"{self.arm}: {self.reason}"]
        if self.p_feasible is not None:
            parts.append(f"within the limits with probability {self.p_feasible:.3f}")
        parts += [f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.bounds.items()]
        if self.safe_arms is not None:
            parts.append(f"{self.safe_arms} arms certified")
        return "; ".join(parts)


class Scheduler(Stateful, ABC):
    """Chooses arms, one decision at a time.

    Subclasses see *cells*: cell = context x number of arms + arm. Without contexts a cell is an
    arm. They implement ``_choose`` and ``_learn``.

    Parameters
    ----------
    space
        All arms that may ever be available.
    objective
        The quantity to minimise.
    limits
        Upper limit of each constrained quantity, for example ``{"latency_s": 0.2}``.
    seeds
        Arms trusted to be within the limits before anything is known.
    rng
        Seed or generator of all randomness.
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
        self._set_limits(limits)
        self.space, self.objective = space, objective
        self.quantities = tuple(dict.fromkeys([objective, *limits]))
        self.seeds: Indices = np.array([space.index(arm) for arm in seeds], dtype=np.int64)
        self.rng = np.random.default_rng(rng)
        self.contexts = ArmSpace(contexts) if contexts else None
        self.joint = _joint(tuple(contexts), space.factors) if contexts else space  # cells as arms
        self.cells = len(self.joint)
        self.steps = 0  # runs observed so far
        self.plays = np.zeros(self.cells, dtype=np.int64)  # the same, of each cell
        self._all_arms: Indices = np.arange(len(space))
        self._open: dict[int, int] = {}  # decision id -> cell
        self._next_id = 0
        self._charged: dict[int, float] = {}  # decision id -> what it took of a budget of risk
        self._latest = 0.0  # latest time that was given
        self._worst_objective = 0.0  # what a failed run counts as
        self._held: list[list[Any]] = []  # [cell, values] that wait for a worst objective

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
            A level for every context factor.
        available
            The arms that can run now; all by default.
        now
            Time in the unit of the forgetting rate; by default the number of observed runs, or the
            latest time that was given.
        """
        first = self._first_cell(context)
        arms = self._all_arms
        if available is not None:
            arms = np.unique([self.space.index(arm) for arm in available]).astype(np.int64)
            if not len(arms):
                raise ValueError("available=[]: no arm to choose from")
        decision = self._choose(arms + first if first else arms, self._note_time(now))
        self._open[decision.id] = first + decision.arm.index
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
        """Observe what the arm of a decision took; in any order, and late.

        Give every quantity of the objective and the limits, as measured, or the reason in
        ``failed``. Other quantities are checked and ignored.

        ``above`` is for a run that was stopped: lower bounds of what it would have taken, for
        example ``{"latency_s": 2.0}``. Quantities that nobody measured may then be left out.
        ``now`` is when it was measured; by default now.

        Raises ValueError for an unknown or finished decision, or a value that is missing, NaN or
        not above 0. The decision then stays open and can be told again.
        """
        cell, values, bounds = self.would_learn(
            decision_id, failed=failed, above=above, **quantities
        )
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
        """The cell, values and bounds that ``tell`` would learn; raises as ``tell`` does."""
        cell, bounds = self._cell_of(decision_id), {}
        if above:
            if both := sorted(set(above) & set(quantities)):
                raise ValueError(f"tell: {', '.join(both)} both as measured and in above=")
            bounds = {name: check_quantity(f"above {name}", value) for name, value in above.items()}
            bounds = {name: bounds[name] for name in self.quantities if name in bounds}
        if failed:
            return cell, {}, {}
        checked = {name: check_quantity(name, value) for name, value in quantities.items()}
        values = {name: checked[name] for name in self.quantities if name in checked}
        if len(values) < len(self.quantities) and not bounds:
            missing = ", ".join(name for name in self.quantities if name not in values)
            raise ValueError(f"tell: no value for {missing}; or say failed='why'")
        return cell, values, bounds

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
        self._set_limits({name: limits[name] for name in self.limits})
        self._limits_changed()

    def belief_table(self, context: Context | None = None) -> pd.DataFrame:
        """Posterior bounds per arm; changes nothing.

        Returns
        -------
        One row an arm, in the order of the space: ``arm`` (index); for each quantity bounds on its
        true mean, such as ``energy_j_low`` and ``energy_j_high`` (NaN without a belief; the same
        mean twice from a scheduler that keeps means alone); ``certified``; ``plays`` (runs so far).
        """
        arms = np.arange(len(self.space))
        cells = arms + self._first_cell(context)
        unknown = (np.full(len(arms), np.nan),) * 2
        bounds, columns = self._believed(cells), {}
        for name in self.quantities:
            low, high = bounds.get(name, unknown)
            with np.errstate(over="ignore"):
                columns[f"{name}_low"], columns[f"{name}_high"] = np.exp(low), np.exp(high)
        certified = self._certified_cells()[cells]
        return pd.DataFrame(
            {"arm": arms, **columns, "certified": certified, "plays": self.plays[cells]}
        )

    def warm_start(self, table: pd.DataFrame, scatter: float = 0.0) -> None:
        """Learn from measurements made before; every factor of the space must be a column.

        ``scatter`` is for a table of another device: how far its arms are from ours, as a standard
        deviation in logs; 0.2 means some 20 %. All rows of an arm then count as one vague
        measurement. 0: the same device, and every row counts.
        """
        if not 0 <= scatter < np.inf:
            raise ValueError(f"scatter={scatter}: expected 0 or more")
        missing = [name for name in (*self.joint.names, *self.quantities) if name not in table]
        if missing:
            raise ValueError(f"warm start: the table lacks the columns {', '.join(missing)}")
        runs: Iterable[tuple[int, Values]] = self._runs_of(table)
        if scatter:
            by_cell: dict[int, list[Values]] = {}
            for cell, values in runs:
                by_cell.setdefault(cell, []).append(values)
            runs = [(cell, _geometric_mean(values)) for cell, values in by_cell.items()]
        for cell, values in runs:
            self._recall(cell, values, scatter)

    def _runs_of(self, table: pd.DataFrame) -> list[tuple[int, Values]]:
        """Cell and values of every row; no values where it failed."""
        runs = []
        for row in table.to_dict("records"):
            cell = self.joint.arm(**{name: row[name] for name in self.joint.names}).index
            reason = row.get("failed")  # an empty one reads as NaN from a file
            failed = bool(reason) and not pd.isna(reason)
            names = () if failed else self.quantities
            runs.append((cell, {name: check_quantity(name, row[name]) for name in names}))
        return runs

    def save(self, path: str | Path) -> Path:
        """Write a file from which ``load`` goes on to the last bit, whole or not at all.

        Raises ValueError if the scheduler holds what no file can, such as a function.
        """
        write_whole(Path(path), self.to_bytes())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A scheduler as it was saved, open decisions and random numbers included.

        Raises StateError, a ValueError, if the file is truncated, edited, of a newer version,
        missing, or of another scheduler.
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
        """The scheduler in what ``to_bytes`` made; errors name its ``path``."""
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
        """Names of the scheduler's own settings: the keywords that not every scheduler has."""
        for base in cls.__mro__[: cls.__mro__.index(Scheduler)]:
            if "__init__" in vars(base):
                for parameter in inspect.signature(base).parameters.values():
                    if parameter.kind is parameter.KEYWORD_ONLY:
                        yield parameter.name

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``Stateful``; decision ids are numbers, which JSON has not as keys."""
        super().set_state(state)
        self._open = {int(decision): int(cell) for decision, cell in state["_open"].items()}
        self._charged = {int(decision): risk for decision, risk in state["_charged"].items()}

    @property
    def changes(self) -> int:
        """How often the scheduler noticed, since it was made, that an arm has changed."""
        return 0

    # What subclasses implement or extend.

    @abstractmethod
    def _choose(self, cells: Indices, now: float) -> Decision:
        """A decision for one of these cells; ties break to the lowest index."""

    @abstractmethod
    def _learn(self, cell: int, values: Values, now: float) -> None:
        """Learn from a measurement: all ``quantities``, but for stopped runs."""

    def _fail(self, cell: int, now: float) -> None:
        """Learn from a failed run: by default twice every limit, and the worst objective known."""
        self._learn_at_worst(cell, self._twice_the_limits(), now)

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        """Learn from a stopped run: by default its bounds as values, the worst objective known.

        A run that was stopped at a limit violates it, and counts as twice the limit, like a failed
        one. A limited quantity without value and bound counts as the limit.
        """
        bounds = {
            name: max(bound, TWICE * self.limits[name])
            if bound >= self.limits.get(name, np.inf)
            else bound
            for name, bound in above.items()
        }
        self._learn_at_worst(cell, {**self.limits, **values, **bounds}, now)

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        """Learn from a row of another table; ``values`` is empty where the run failed."""
        self._observe(cell, values, {}, self._note_time(None))

    def _refund(self, amount: float) -> None:
        """Called with what a cancelled decision took of a budget."""

    def _limits_changed(self) -> None:
        """Called when ``limits`` has new values."""

    def _believed(self, cells: Indices) -> LogBounds:
        """Bounds of the logs of the quantities of some cells; none by default."""
        return {}

    def _certified_cells(self) -> Mask:
        """Which cells are certified to be within every limit, shape (cells,)."""
        return np.zeros(self.cells, dtype=bool)

    # What they use.

    def _decision(self, cell: int, reason: str, **known: Any) -> Decision:
        return Decision(self._next_id, self.space[cell % len(self.space)], reason, **known)

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

    def _learn_at_worst(self, cell: int, values: Values, now: float) -> None:
        """With the worst objective known where there is none; wait for one as long as none is."""
        if self.objective in values:
            self._learn(cell, values, now)
        elif self._worst_objective:
            self._learn(cell, {self.objective: self._worst_objective, **values}, now)
        else:
            self._held.append([cell, values])

    def _twice_the_limits(self) -> Values:
        return {name: TWICE * limit for name, limit in self.limits.items()}

    def _violates(self, values: Values) -> bool:
        return any(values.get(name, 0.0) > limit for name, limit in self.limits.items())

    def _charge(self, amount: float) -> None:
        """Note what the decision that is being made takes of a budget."""
        self._charged[self._next_id] = amount

    def _trusted_cells(self) -> Mask:
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

    def _with_running(self, counts: Array, cells: Indices) -> Array:
        """Counts of some of the cells, one more for every run that was not learned yet."""
        if not len(running := self._running()):
            return counts[cells]
        return (counts + np.bincount(running, minlength=self.cells))[cells]

    def _cell_of(self, decision_id: int) -> int:
        if decision_id not in self._open:
            state = "finished" if 0 <= decision_id < self._next_id else "unknown"
            raise ValueError(f"decision {decision_id}: {state}; open decisions: {[*self._open]}")
        return self._open[decision_id]

    def _first_cell(self, context: Context | None) -> int:
        if self.contexts is None:
            if context:
                raise ValueError(f"context={dict(context)}: made without contexts=[Factor(...)]")
            return 0
        if context is None:
            raise ValueError(f"context=None: expected a level for {', '.join(self.contexts.names)}")
        return self.contexts.arm(**context).index * len(self.space)

    def _note_time(self, now: float | None) -> float:
        """The time to go by; remembers the latest that was given."""
        if now is None:
            return max(float(self.steps), self._latest)
        self._latest = max(self._latest, float(now))
        return float(now)

    def _set_limits(self, limits: Mapping[str, float]) -> None:
        if not limits:
            raise ValueError("limits={}: give at least one, for example {'latency_s': 0.2}")
        self.limits = {name: check_quantity(f"limit {name}", v) for name, v in limits.items()}
        self._log_limits = {name: math.log(limit) for name, limit in self.limits.items()}


def expect(holds: bool, setting: str, expected: str) -> None:
    """Raise ValueError for a setting, written as ``name=value``, unless the condition holds."""
    if not holds:
        raise ValueError(f"{setting}: expected {expected}")


def _geometric_mean(runs: list[Values]) -> Values:
    """Of every quantity over the runs that did not fail; empty if all failed."""
    done = [run for run in runs if run]
    names = done[0] if done else ()
    return {name: float(np.exp(np.mean(np.log([run[name] for run in done])))) for name in names}


@lru_cache(maxsize=16)
def _joint(contexts: tuple[Factor, ...], factors: tuple[Factor, ...]) -> ArmSpace:
    """One space for all schedulers of alike devices, of which a study may have thousands."""
    return ArmSpace([*contexts, *factors])
