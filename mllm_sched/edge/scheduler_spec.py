"""The arguments that make a scheduler, as one value that can be stored and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers import Scheduler, make_scheduler
from mllm_sched.schedulers.persistence import factor_words, plain

SHOWN, LONGEST = 4, 60  # names, and characters, of a difference


@dataclass(frozen=True)
class SchedulerSpec:
    """The arguments of ``make_scheduler``, with a number as ``rng``.

    Examples
    --------
    >>> space = ArmSpace([Factor("threads", [1, 2])])
    >>> spec = SchedulerSpec("ucb", space, {"latency_s": 0.2})
    >>> other = SchedulerSpec("ucb", space, {"latency_s": 0.3}, rng=1)
    >>> differences(spec.to_json(), other.to_json())
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
        """A new scheduler; ValueError and TypeError as of ``make_scheduler``."""
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

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types."""
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


def space_of(spec: Mapping[str, Any]) -> ArmSpace:
    """The arms of what ``SchedulerSpec.to_json`` returned."""
    return ArmSpace([Factor(**factor) for factor in spec["factors"]])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes two results of ``SchedulerSpec.to_json`` different schedulers, in short phrases.

    Other values of the same limits do not: those can be changed while a scheduler is in use.
    """
    found: list[str] = []
    for name, value in now.items():
        old = before.get(name)
        if name in ("factors", "contexts"):
            found += _factor_differences(name, old or (), value)
        elif name == "limits":
            found += _set_difference(name, old or (), value)
        elif name == "seeds":
            if before.get("factors") == now["factors"]:
                arms = space_of(now)
                seeds = ([arms[index] for index in each] for each in (old or (), value))
                found += _set_difference("trusted", *seeds)
        elif old != value:
            found.append(f"{name}: {_short(old)}, here {_short(value)}")
    return found


def _factor_differences(
    what: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[str]:
    old, new = ({factor["name"]: factor for factor in factors} for factors in (before, now))
    found = _set_difference(what, old, new)
    for name in (name for name in old if name in new and old[name] != new[name]):
        levels = _set_difference(name, old[name]["levels"], new[name]["levels"])
        found += levels or [f"{name}: other labels, scale or order of levels"]
    return found or ([] if list(old) == list(new) else [f"{what}: in another order"])


def _set_difference(what: str, before: Iterable[Any], now: Iterable[Any]) -> list[str]:
    old, new = list(before), list(now)
    only = {
        "before": [each for each in old if each not in new],
        "here": [each for each in new if each not in old],
    }
    found = []
    for where, each in only.items():
        if each:
            more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
            found.append(f"{where} also {', '.join(map(str, each[:SHOWN]))}{more}")
    return [f"{what}: {', '.join(found)}"] if found else []


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
