"""What can be chosen: factors, arms and the space they span."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Level = str | int | float

# Watts of a Jetson AGX Orin's power levels, and their names. MAX has no cap; 60 W is its rating.
ORIN_POWER_LEVELS: Mapping[float, str] = {15: "15W", 30: "30W", 50: "50W", 60: "MAX"}


def power_name(watts: float) -> str:
    """Name of a power level; watts that are no level of a Jetson AGX Orin read as they are."""
    return ORIN_POWER_LEVELS.get(watts, f"{watts:g}W")


@dataclass(frozen=True)
class Factor:
    """One thing that can be set, and the levels it can be set to.

    Examples
    --------
    >>> Factor("power_w", [15, 30, 60], log=True).encoded().round(3).tolist()
    [0.0, 0.5, 1.0]
    """

    name: str  # a Python identifier; units belong in it (``power_w``)
    levels: Sequence[Level]  # strings make it categorical; numbers make it ordered, and must rise
    log: bool = False  # whether neighbouring levels are compared by ratio instead of difference
    labels: Sequence[str] = ()  # how people read the levels; by default the levels themselves

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "labels", tuple(self.labels) or tuple(map(str, self.levels)))
        if not self.name.isidentifier():
            raise ValueError(f"factor name {self.name!r}: expected a Python identifier")
        if not self.levels:
            raise ValueError(f"factor {self.name!r}: no levels; give at least one")
        if len(self.labels) != len(self.levels):
            raise ValueError(
                f"factor {self.name!r}: {len(self.labels)} labels for {len(self.levels)} levels"
            )
        kinds = {isinstance(level, str) for level in self.levels}
        if len(kinds) > 1:
            raise ValueError(f"factor {self.name!r}: levels mix strings and numbers")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"factor {self.name!r}: a level is given twice in {self.levels}")
        if self.categorical:
            return
        numbers = [float(level) for level in self.levels]
        if not all(math.isfinite(number) for number in numbers) or numbers != sorted(numbers):
            raise ValueError(f"factor {self.name!r}: levels {self.levels} must be finite and rise")
        if self.log and numbers[0] <= 0:
            raise ValueError(f"factor {self.name!r}: log=True needs levels above 0")

    @property
    def categorical(self) -> bool:
        """Whether the levels are names, with no order between them."""
        return isinstance(self.levels[0], str)

    def index(self, level: Level) -> int:
        """Position of a level; an unknown one raises ValueError and lists the known ones."""
        if level in self.levels:
            return self.levels.index(level)
        known = ", ".join(map(repr, self.levels))
        raise ValueError(f"{self.name}={level!r}: unknown level; expected one of {known}")

    def encoded(self) -> NDArray[np.float64]:
        """Levels as model input, shape (levels,): codes 0, 1, ... or positions within [0, 1]."""
        if self.categorical:
            return np.arange(len(self.levels), dtype=np.float64)
        values = np.array([float(level) for level in self.levels])
        values = np.log(values) if self.log else values
        span = values[-1] - values[0]
        return (values - values[0]) / span if span > 0 else np.zeros_like(values)


@dataclass(frozen=True, eq=False)
class Arm:
    """One configuration: a level of every factor. Levels read as attributes.

    Two arms are equal when their levels are. ``index`` is the place in the space they came from.
    """

    index: int
    levels: Mapping[str, Level]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", MappingProxyType(dict(self.levels)))

    def __getattr__(self, name: str) -> Level:
        if name.startswith("_") or name == "levels":  # not yet set while unpickling
            raise AttributeError(name)
        try:
            return self.levels[name]
        except KeyError:
            raise AttributeError(
                f"arm has no factor {name!r}; it has {list(self.levels)}"
            ) from None

    def __reduce__(self) -> tuple[type[Arm], tuple[int, dict[str, Level]]]:
        return Arm, (self.index, dict(self.levels))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arm) and self.levels == other.levels

    def __hash__(self) -> int:
        return hash(tuple(self.levels.items()))

    def __str__(self) -> str:
        return ", ".join(f"{name}={level}" for name, level in self.levels.items())


class ArmSpace(Sequence[Arm]):
    """All combinations of some factors, the last factor varying fastest.

    Examples
    --------
    >>> space = ArmSpace.agx_orin()
    >>> len(space), str(space[7])
    (60, 'component=gpu, power_w=30, load=0.6')
    >>> space.arm(component="dla", power_w=60, load=1.0).index
    59
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        if not factors:
            raise ValueError("an arm space needs at least one factor")
        self.factors = tuple(factors)
        self.names = tuple(factor.name for factor in factors)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two factors share a name: {self.names}")
        combinations = product(*(factor.levels for factor in factors))
        self._arms = tuple(
            Arm(index, dict(zip(self.names, levels, strict=True)))
            for index, levels in enumerate(combinations)
        )

    @classmethod
    def agx_orin(
        cls,
        components: Sequence[str] = ("gpu", "cpu", "dla"),
        power_levels: Sequence[float] = tuple(ORIN_POWER_LEVELS),
    ) -> ArmSpace:
        """The paper's arms on a Jetson AGX Orin: 3 components x 4 power levels x 5 loads.

        Load is a share of the component. Fewer components or power levels may be given; an unknown
        power level raises ValueError.
        """
        labels = [component.upper() for component in components]
        unknown = [level for level in power_levels if level not in ORIN_POWER_LEVELS]
        if unknown:
            known = ", ".join(f"{level:g}" for level in ORIN_POWER_LEVELS)
            raise ValueError(f"power_levels: {unknown[0]!r}: expected some of {known}")
        names = [ORIN_POWER_LEVELS[level] for level in power_levels]
        return cls(
            [
                Factor("component", components, labels=labels),
                Factor("power_w", power_levels, log=True, labels=names),
                Factor("load", [0.2, 0.4, 0.6, 0.8, 1.0], log=True),
            ]
        )

    def __len__(self) -> int:
        return len(self._arms)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int or slice, as a tuple's
        return self._arms[index]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self._arms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArmSpace) and self.factors == other.factors

    def __hash__(self) -> int:
        return hash(self.factors)

    def __repr__(self) -> str:
        sizes = " x ".join(f"{factor.name}({len(factor.levels)})" for factor in self.factors)
        return f"ArmSpace({sizes} = {len(self)} arms)"

    def __deepcopy__(self, memo: dict[int, object]) -> ArmSpace:
        return self  # it never changes, and its copies would not share their arms

    def factor(self, name: str) -> Factor:
        """The factor of that name; an unknown one raises ValueError."""
        for factor in self.factors:
            if factor.name == name:
                return factor
        raise ValueError(f"unknown factor {name!r}; expected one of {', '.join(self.names)}")

    def arm(self, **levels: Level) -> Arm:
        """The arm at these levels. A missing or unknown factor or level raises ValueError."""
        for name in levels:
            self.factor(name)
        missing = [name for name in self.names if name not in levels]
        if missing:
            raise ValueError(f"no level given for {', '.join(missing)}")
        index = 0
        for factor in self.factors:
            index = index * len(factor.levels) + factor.index(levels[factor.name])
        return self._arms[index]

    def index(self, arm: Arm, start: int = 0, stop: int | None = None) -> int:
        """Position of an arm, found by its levels; one that is not here raises ValueError."""
        mine = 0 <= arm.index < len(self) and self._arms[arm.index] is arm  # the usual case
        index = arm.index if mine else self.arm(**arm.levels).index
        if not start <= index < (len(self) if stop is None else stop):
            raise ValueError(f"arm {arm} is not between {start} and {stop}")
        return index

    @cached_property
    def _features(self) -> NDArray[np.float64]:
        columns = product(*(factor.encoded() for factor in self.factors))
        features = np.array(list(columns), dtype=np.float64)
        features.flags.writeable = False
        return features

    def features(self) -> NDArray[np.float64]:
        """Arms as model input, shape (arms, factors), float64, one row an arm, read-only.

        A categorical factor holds codes 0, 1, ...; an ordered one lies within [0, 1].
        """
        return self._features
