"""Which of several edge agents takes a task: the one that meets its deadline with least energy.

Now and then another takes one, so that what is thought of it does not stay as it once was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SAME_ENERGY = 0.05  # agents whose energy differs by less than this share take turns
PROBE_S = 5.0  # an agent that got no task for so long is tried again,
PROBE_TASKS = 20  # but at most once in so many tasks, since its energy may be higher


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
        Seconds until all that waits or runs there has had its turn.
    answer_s
        Seconds from features to the end of an answer.
    tasks
        That are there.
    idle_s, passed
        Seconds since a task was sent there, and tasks that others got since.
    """

    name: str
    modalities: frozenset[str]
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    backlog_s: float = 0.0
    answer_s: float = 0.0
    tasks: int = 0
    idle_s: float = 0.0
    passed: int = 0

    @property
    def is_due(self) -> bool:
        """Whether it was left alone for so long that nobody knows how it is now."""
        return self.idle_s >= PROBE_S and self.passed >= PROBE_TASKS


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


Plan = tuple[Placed, Candidate]


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
    others and as frugal as the best, so that it is tried as soon as it is idle. If none is expected
    to be in time with all that waits there, the one that will be done first decides by itself.

    One that is held to miss its own limit on encoding is asked only if no other can be in time; of
    several such, the one that will be done first. One that got no task for a while
    (``Candidate.is_due``) goes before all others: it learns by tasks alone, and what it tells of
    itself changes by them alone.

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
        If none encodes these modalities, or none could be in time if nothing waited.

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
    plans = [(_plan(items, candidate, guesses), candidate) for candidate in able]
    in_time = [plan for plan in plans if plan[0].total_s <= left_s]
    if not in_time:
        return _first_done(_with_hope(plans, left_s))
    if due := [plan for plan in in_time if plan[1].is_due]:
        return _first_done(due)
    feasible = [plan for plan in in_time if not _infeasible(items, plan[1])]
    return _first_done(_frugal(feasible) if feasible else in_time)


def _with_hope(plans: list[Plan], left_s: float) -> list[Plan]:
    """Those that would be in time if nothing waited there; NoAgentFits if there is none.

    Only the agent knows what of that goes before this user: refused for all that waits, light users
    would pay for heavy ones (notebook 09).
    """
    hope = [plan for plan in plans if plan[0].total_s - plan[1].backlog_s <= left_s]
    if not hope:
        soonest_s = min(placed.total_s - candidate.backlog_s for placed, candidate in plans)
        raise NoAgentFits("too-late", f"{soonest_s:.2f} s needed, {left_s:.2f} s left")
    return hope


def _frugal(plans: list[Plan]) -> list[Plan]:
    least_j = min(placed.energy_j for placed, _ in plans)
    return [plan for plan in plans if plan[0].energy_j <= least_j * (1 + SAME_ENERGY)]


def _first_done(plans: list[Plan]) -> Placed:
    return min(plans, key=lambda plan: (plan[0].total_s, plan[1].tasks, plan[0].name))[0]


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


def _plan(items: Iterable[str], candidate: Candidate, guesses: Mapping[str, Prediction]) -> Placed:
    encode_s = energy_j = 0.0
    for modality in items:
        known, guess = candidate.predictions.get(modality), guesses[modality]
        encode_s += _first_finite(known.latency_s if known else math.nan, guess.latency_s)
        energy_j += _first_finite(known.energy_j if known else math.nan, guess.energy_j)
    total_s = candidate.backlog_s + encode_s + candidate.answer_s
    return Placed(candidate.name, encode_s, total_s, energy_j)


def _first_finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
