"""Which of several edge agents takes a task: the one that meets its deadline with least energy.

Now and then another takes one, so that what is thought of it does not stay as it once was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

SAME_ENERGY = 0.05  # agents whose energy differs by less than this share take turns
PROBE_S = 5.0  # an agent that got no task for so long is tried again,
PROBE_TASKS = 20  # but at most once in so many tasks, since its energy may be higher


@dataclass(frozen=True)
class Prediction:
    """Of encoding one item on an agent; NaN joules if its meter is gone.

    ``infeasible`` says that no arm of the agent is held to meet its limit.
    """

    latency_s: float
    energy_j: float
    infeasible: bool = False


@dataclass(frozen=True)
class Candidate:
    """What is known of an agent when a task is placed."""

    name: str
    modalities: frozenset[str]  # that it encodes
    predictions: Mapping[str, Prediction] = field(default_factory=dict)  # of what it measured
    backlog_s: float = 0.0  # until all that waits or runs there has had its turn
    answer_s: float = 0.0  # from features to the end of an answer
    tasks: int = 0  # that are there
    idle_s: float = 0.0  # since a task was sent there
    passed: int = 0  # tasks that others got since

    @property
    def is_due(self) -> bool:
        """Whether it was left alone for so long that nobody knows how it is now."""
        return self.idle_s >= PROBE_S and self.passed >= PROBE_TASKS

    def is_infeasible(self, items: Iterable[str]) -> bool:
        """Whether it is held to miss its limit with one of these modalities."""
        return any(p.infeasible for name, p in self.predictions.items() if name in items)


@dataclass(frozen=True)
class Placed:
    """Where a task goes, and what its encoding is expected to take there."""

    agent: Candidate
    encode_s: float
    energy_j: float

    @property
    def name(self) -> str:
        """Of the agent."""
        return self.agent.name

    @property
    def total_s(self) -> float:
        """Until the end of the answer, with what waits before it."""
        return self.agent.backlog_s + self.encode_s + self.agent.answer_s


class NoAgentFits(Exception):
    """No agent can take the task; ``reason`` is ``cannot`` or ``too-late``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def place(
    items: Sequence[str], candidates: Sequence[Candidate], left_s: float = math.inf
) -> Placed:
    """The agent for a task, of which ``items`` are the modalities, within ``left_s`` seconds.

    Among the agents that are expected to meet the deadline: the one of least energy; of those
    within 5 % of it, the one that will be done first; then the one with fewest tasks, then by name.
    An agent that has not measured a modality yet is taken to be as fast as the median of the
    others and as frugal as the best, so that it is tried as soon as it is idle. If none is expected
    to be in time with all that waits there, the one that will be done first decides by itself.

    One that is held to miss its own limit on encoding is asked only if no other can be in time; of
    several such, the one that will be done first. One that got no task for a while
    (``Candidate.is_due``) goes before all others: it learns by tasks alone, and what it tells of
    itself changes by them alone.

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
        wanted = " and ".join(sorted(set(items))) or "text"
        raise NoAgentFits("cannot", f"no edge agent here encodes {wanted}")
    guesses = {modality: _guess(modality, able) for modality in set(items)}
    plans = [_plan(items, candidate, guesses) for candidate in able]
    in_time = [plan for plan in plans if plan.total_s <= left_s]
    if not in_time:
        return _first_done(_with_hope(plans, left_s))
    if due := [plan for plan in in_time if plan.agent.is_due]:
        return _first_done(due)
    feasible = [plan for plan in in_time if not plan.agent.is_infeasible(items)]
    least_j = min((plan.energy_j for plan in feasible), default=math.nan)
    frugal = [plan for plan in feasible if plan.energy_j <= least_j * (1 + SAME_ENERGY)]
    return _first_done(frugal or in_time)


def _with_hope(plans: list[Placed], left_s: float) -> list[Placed]:
    """Those that would be in time if nothing waited there; NoAgentFits if there is none.

    Only the agent knows what of that goes before this user: refused for all that waits, light users
    would pay for heavy ones (notebook 09).
    """
    if hope := [plan for plan in plans if plan.total_s - plan.agent.backlog_s <= left_s]:
        return hope
    soonest_s = min(plan.total_s - plan.agent.backlog_s for plan in plans)
    raise NoAgentFits("too-late", f"{soonest_s:.2f} s needed, {left_s:.2f} s left")


def _first_done(plans: list[Placed]) -> Placed:
    return min(plans, key=lambda plan: (plan.total_s, plan.agent.tasks, plan.name))


def _guess(modality: str, candidates: Iterable[Candidate]) -> Prediction:
    """Of an agent that has not measured it: median latency and least energy of the others."""
    known = [found for one in candidates if (found := one.predictions.get(modality))]
    latencies_s = [one.latency_s for one in known if math.isfinite(one.latency_s)]
    energies_j = [one.energy_j for one in known if math.isfinite(one.energy_j)]
    return Prediction(median(latencies_s or [0.0]), min(energies_j or [0.0]))


def _plan(items: Iterable[str], agent: Candidate, guesses: Mapping[str, Prediction]) -> Placed:
    encode_s = energy_j = 0.0
    for modality in items:
        guess = guesses[modality]
        known = agent.predictions.get(modality, guess)
        encode_s += known.latency_s if math.isfinite(known.latency_s) else guess.latency_s
        energy_j += known.energy_j if math.isfinite(known.energy_j) else guess.energy_j
    return Placed(agent, encode_s, energy_j)
