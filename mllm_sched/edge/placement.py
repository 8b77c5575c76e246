"""Which of several edge agents takes a task: the one that meets its deadline with least energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SAME_ENERGY = 0.05  # agents whose energy differs by less than this share take turns


@dataclass(frozen=True)
class Prediction:
    """Of encoding one item on an agent.

    Attributes
    ----------
    infeasible
        No arm of the agent is held to meet its limit.
    """

    latency_s: float
    energy_j: float
    infeasible: bool = False


@dataclass(frozen=True)
class Candidate:
    """What is known of an agent when a task is placed.

    Attributes
    ----------
    modalities
        That it encodes.
    predictions
        By modality; one that it has not measured yet is missing.
    backlog_s
        Seconds of encoding that wait or run there.
    answer_s
        Seconds from features to the end of an answer.
    tasks
        That are there.
    """

    name: str
    modalities: frozenset[str]
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    backlog_s: float = 0.0
    answer_s: float = 0.0
    tasks: int = 0


@dataclass(frozen=True)
class Placed:
    """Where a task goes, and what it is expected to take there.

    Attributes
    ----------
    encode_s
        Seconds of encoding, which others will wait for.
    total_s
        Until the end of the answer, with what waits before it.
    """

    name: str
    encode_s: float
    total_s: float
    energy_j: float


class NoAgentFits(Exception):
    """No agent can take the task; ``reason`` is ``cannot`` or ``too-late``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def place(
    items: Sequence[str], candidates: Sequence[Candidate], left_s: float = math.inf
) -> Placed:
    """The agent for a task.

    Among the agents that are expected to meet the deadline: the one of least energy; of those
    within 5 % of it, the one that will be done first; then the one with fewest tasks, then by name.
    An agent that has not measured a modality yet is taken to be as fast as the median of the
    others and as frugal as the best, so that it is tried as soon as it is idle.

    Parameters
    ----------
    items
        Modality of every item of the task; may be empty.
    candidates
        Agents that answer and take tasks.
    left_s
        Seconds until the deadline.

    Raises
    ------
    NoAgentFits
        If none encodes these modalities, none is held to meet its limit, or none can be in time.

    Examples
    --------
    >>> image, idle = frozenset(["image"]), {"image": Prediction(0.1, 2.0)}
    >>> busy = Candidate("a", image, {"image": Prediction(0.1, 1.0)}, backlog_s=3.0)
    >>> place(["image"], [busy, Candidate("b", image, idle)]).name
    'a'
    >>> place(["image"], [busy, Candidate("b", image, idle)], left_s=1.0).name
    'b'
    """
    able = [candidate for candidate in candidates if candidate.modalities >= set(items)]
    if not able:
        raise NoAgentFits("cannot", f"no edge agent here encodes {_and(items)}")
    guesses = {modality: _guess(modality, able) for modality in set(items)}
    feasible = [candidate for candidate in able if not _infeasible(items, candidate)]
    if not feasible:
        raise NoAgentFits("cannot", f"no edge agent can encode {_and(items)} within its limit")
    plans = [_plan(items, candidate, guesses) for candidate in feasible]
    in_time = [plan for plan in plans if plan[0].total_s <= left_s]
    if not in_time:
        soonest_s = min(plan.total_s for plan, _ in plans)
        message = f"{soonest_s:.2f} s needed, {left_s:.2f} s left"
        raise NoAgentFits("too-late", message)
    least_j = min(plan.energy_j for plan, _ in in_time)
    frugal = [one for one in in_time if one[0].energy_j <= least_j * (1 + SAME_ENERGY)]
    return min(frugal, key=lambda one: (one[0].total_s, one[1], one[0].name))[0]


def _and(items: Iterable[str]) -> str:
    return " and ".join(sorted(set(items))) or "text"


def _infeasible(items: Iterable[str], candidate: Candidate) -> bool:
    known = (candidate.predictions.get(modality) for modality in items)
    return any(prediction is not None and prediction.infeasible for prediction in known)


def _guess(modality: str, candidates: Iterable[Candidate]) -> Prediction:
    """Of an agent that has not measured it: median latency and least energy of the others."""
    known = [found for one in candidates if (found := one.predictions.get(modality))]
    latency_s = _of(median, (one.latency_s for one in known))
    return Prediction(latency_s, _of(min, (one.energy_j for one in known)))


def _of(rule: Callable[[list[float]], float], values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return rule(known) if known else 0.0


def _plan(
    items: Iterable[str], candidate: Candidate, guesses: Mapping[str, Prediction]
) -> tuple[Placed, int]:
    encode_s = energy_j = 0.0
    for modality in items:
        known, guess = candidate.predictions.get(modality), guesses[modality]
        encode_s += _first_finite(known.latency_s if known else math.nan, guess.latency_s)
        energy_j += _first_finite(known.energy_j if known else math.nan, guess.energy_j)
    total_s = candidate.backlog_s + encode_s + candidate.answer_s
    return Placed(candidate.name, encode_s, total_s, energy_j), candidate.tasks


def _first_finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
