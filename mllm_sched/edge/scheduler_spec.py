"""All that makes a scheduler, as one value that can be written down and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers import Scheduler, make_scheduler
from mllm_sched.schedulers.saving import factor_words, plain


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
    """What makes two of them other schedulers, one phrase each.

    Other values of the same limits do not: those can be changed while a scheduler is in use.
    """
    return [
        f"{name}: {before.get(name)}, here {now[name]}"
        for name in now
        if before.get(name) != now[name]
        and not (name == "limits" and set(before[name]) == set(now[name]))
    ]
