"""All that makes a scheduler, as one value that can be written down and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers import Scheduler, make_scheduler
from mllm_sched.schedulers.base import factor_words, plain

SHOWN, LONGEST = 4, 60  # names, and characters, of what differs

Words = Mapping[str, Any]


@dataclass(frozen=True)
class SchedulerSpec:
    """The arguments of ``make_scheduler``.

    Parameters
    ----------
    name, space, limits, seeds, contexts, objective
        See ``make_scheduler``.
    rng
        A number, so that the scheduler can be made again.
    settings
        The rule's own.

    Examples
    --------
    >>> space = ArmSpace([Factor("threads", [1, 2])])
    >>> spec = SchedulerSpec("ucb", space, {"latency_s": 0.2})
    >>> other = SchedulerSpec("ucb", space, {"latency_s": 0.3}, rng=1)
    >>> differences(spec.words(), other.words())
    ['rng: 0, here 1']
    """

    name: str
    space: ArmSpace
    limits: Mapping[str, float]
    seeds: Sequence[Arm] = ()
    rng: int = 0
    contexts: Sequence[Factor] = ()
    objective: str = "energy_j"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Scheduler:
        """A scheduler that knows nothing yet; ValueError and TypeError as of ``make_scheduler``."""
        return make_scheduler(
            self.name,
            self.space,
            objective=self.objective,
            limits=self.limits,
            seeds=self.seeds,
            rng=self.rng,
            contexts=self.contexts,
            **self.settings,
        )

    def words(self) -> dict[str, Any]:
        """The same in JSON's own types."""
        words = {
            "name": self.name,
            "factors": [factor_words(factor) for factor in self.space.factors],
            "limits": dict(self.limits),
            "seeds": [self.space.index(arm) for arm in self.seeds],
            "rng": self.rng,
            "contexts": [factor_words(factor) for factor in self.contexts],
            "objective": self.objective,
            "settings": plain(self.settings),
        }
        done: dict[str, Any] = json.loads(json.dumps(words, default=lambda array: array.tolist()))
        return done


def space_in(words: Mapping[str, Any]) -> ArmSpace:
    """The arms of what ``SchedulerSpec.words`` returned."""
    return ArmSpace([Factor(**factor) for factor in words["factors"]])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two of them other schedulers, one short phrase each.

    Other values of the same limits do not: those can be changed while a scheduler is in use.

    Parameters
    ----------
    before, now
        What ``SchedulerSpec.words`` returned.
    """
    found: list[str] = []
    for name, value in now.items():
        old = before.get(name)
        if name in ("factors", "contexts"):
            found += _other_factors(name, old or (), value)
        elif name == "limits":
            found += _other_names(name, old or (), value)
        elif name == "seeds":
            if before.get("factors") == now["factors"]:
                arms = space_in(now)
                seeds = ([arms[index] for index in each] for each in (old or (), value))
                found += _other_names("trusted", *seeds)
        elif old != value:
            found.append(f"{name}: {_short(old)}, here {_short(value)}")
    return found


def _other_factors(what: str, before: Sequence[Words], now: Sequence[Words]) -> list[str]:
    old, new = ({factor["name"]: factor for factor in factors} for factors in (before, now))
    found = _other_names(what, old, new)
    for name in (name for name in old if name in new and old[name] != new[name]):
        levels = _other_names(name, old[name]["levels"], new[name]["levels"])
        found += levels or [f"{name}: other labels, scale or order of levels"]
    return found or ([] if list(old) == list(new) else [f"{what}: in another order"])


def _other_names(what: str, before: Iterable[Any], now: Iterable[Any]) -> list[str]:
    """Which of them are in one of the two alone."""
    old, new = list(before), list(now)
    gone = [each for each in old if each not in new]
    come = [each for each in new if each not in old]
    both = ("before", gone), ("here", come)
    said = [f"{where} also {_some(each)}" for where, each in both if each]
    return [f"{what}: {', '.join(said)}"] if said else []


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return f"{', '.join(map(str, values[:SHOWN]))}{more}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
