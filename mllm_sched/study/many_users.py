"""Many users on many boards before one pool of LLM servers: what is simulated, and what came out.

The schedulers and the queue are those of the running system; boards, users, link and LLM are
simulated. ``many_users_system.py`` plays a scenario, ``many_users_sweep.py`` many of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from mllm_sched.study.accelerators import A100
from mllm_sched.study.lineup import SAFE
from mllm_sched.study.many_users_boards import MODALITIES, TASKS, Fleet
from mllm_sched.study.runner import Rule
from mllm_sched.study.strategy_costs import ITEMS, Setting, sent_s

ANSWERED, LATE = "answered", "late"  # late: encoded, but its deadline passed before its answer
SHED = ("too-late", "queue-full", "pushed-out", "expired")  # before anything was spent on it
UNDER_WAY = "under way"
OUTCOMES = (ANSWERED, LATE, *SHED, UNDER_WAY)
PLACES = 4  # answers at once on one A100


@dataclass(frozen=True)
class Costs:
    """Seconds of a task beyond its encoding, by modality: the model of notebook 01.

    Attributes
    ----------
    link_s
        Its features on the way to the LLM server.
    llm_s
        On a place of the LLM server: prefill, and an answer of 64 tokens.
    """

    link_s: dict[str, float]
    llm_s: dict[str, float]


def costs(mbit_s: float) -> Costs:
    """What a task costs behind its encoder.

    Examples
    --------
    >>> {name: round(seconds, 2) for name, seconds in costs(1000.0).llm_s.items()}
    {'image': 0.69, 'audio': 0.79, 'video': 0.8}
    """
    setting = Setting(mbit_s=mbit_s)
    items = {item.encoder: item for item in ITEMS}
    mine = {name: items[task.encoder] for name, task in TASKS.items()}
    return Costs(
        {name: sent_s(setting, setting.feature_bytes(item)) for name, item in mine.items()},
        {name: setting.language.seconds(A100, item.rows + 32) for name, item in mine.items()},
    )


@dataclass(frozen=True)
class Scenario:
    """What is simulated; everything that its outcome depends on.

    Attributes
    ----------
    users, edges
        How many users, and how many boards, each with a queue and a scheduler of its own.
    llm_servers
        A100s that all boards share, with ``PLACES`` answers at once on each.
    rule
        Scheduler of every board.
    think_s
        Mean of the exponential time from an answer (or a refusal) to the user's next task.
    deadlines_s
        A task's deadline is drawn evenly from this range, seconds from its arrival.
    shares
        Of image, audio and video among the tasks.
    limit_s
        On the latency of encoding.
    mbit_s
        Link of every board.
    fleet
        How boards differ.
    heavy_users, heavy_at_once
        So many of the users ask for so many things at once, each with the same think time.
    looks_ahead
        Whether the LLM server begins only what it can still end in time.
    frugal_first
        Whether the front takes the least energy among the boards that are predicted to be in
        time; otherwise the board that is done soonest.
    front_refuses
        Whether the front refuses what would be late on all boards with all that waits there;
        otherwise only the boards refuse, which know what of that goes before a user's task.
    fair
        Whether the queue tells users apart; otherwise it goes by deadline alone.
    waiting, per_user
        Bounds of each board's queue, as ``FairQueue`` has them.
    warm_up_s, horizon_s
        Tasks that end in the ``horizon_s`` after ``warm_up_s`` count.
    seed
        Of boards, users and schedulers.
    """

    users: int = 100
    edges: int = 10
    llm_servers: int = 32
    rule: Rule = SAFE
    think_s: float = 30.0
    deadlines_s: tuple[float, float] = (2.0, 4.0)
    shares: tuple[float, float, float] = (0.6, 0.25, 0.15)
    limit_s: float = 0.2
    mbit_s: float = 1000.0
    fleet: Fleet = field(default_factory=Fleet)
    heavy_users: int = 0
    heavy_at_once: int = 10
    looks_ahead: bool = True
    frugal_first: bool = True
    front_refuses: bool = False
    fair: bool = True
    waiting: int = 64
    per_user: int = 16
    warm_up_s: float = 30.0
    horizon_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "edges", "llm_servers", "heavy_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        if not 0 <= self.heavy_users <= self.users:
            raise ValueError(f"heavy_users={self.heavy_users}: expected within 0 to {self.users}")
        if not 0 < self.deadlines_s[0] <= self.deadlines_s[1] < math.inf:
            raise ValueError(f"deadlines_s={self.deadlines_s}: expected two rising, above 0")
        if not (self.think_s > 0 and self.horizon_s > 0 and self.warm_up_s >= 0):
            raise ValueError("think_s and horizon_s: expected above 0; warm_up_s: 0 or more")
        if len(self.shares) != len(MODALITIES) or not math.isclose(sum(self.shares), 1.0):
            raise ValueError(f"shares={self.shares}: expected {len(MODALITIES)} that sum to 1")

    @property
    def asks_at_once(self) -> list[int]:
        """How many loops of asking and thinking each user has; the heavy ones come first."""
        light = self.users - self.heavy_users
        return [self.heavy_at_once] * self.heavy_users + [1] * light

    @property
    def ends_s(self) -> float:
        """When the simulation stops."""
        return self.warm_up_s + self.horizon_s


@dataclass(frozen=True)
class Played:
    """What came out of a scenario.

    Attributes
    ----------
    scenario
        What was played.
    tasks
        One row a task, in order of arrival: ``user`` and ``board`` (numbers; board -1: refused by
        all), ``modality``, ``arrived_s``, ``deadline_s`` (moments), ``outcome``, ``ended_s`` (NaN
        under way), ``begun_s`` (of encoding), ``encode_s``, ``energy_j``, ``true_s`` (mean latency
        of its arm then; all four NaN if it was not encoded), ``llm_s`` (on a place of the LLM).
    """

    scenario: Scenario
    tasks: pd.DataFrame

    @property
    def counted(self) -> pd.DataFrame:
        """The tasks that ended after the warm-up: arrived they may have before."""
        return self.tasks[self.tasks["ended_s"] >= self.scenario.warm_up_s]
