"""The running system, simulated: many users, many boards, one pool of LLM servers.

The schedulers and the queue are those of the running system; boards (``fleet.py``), users, link and
LLM are simulated. A user thinks, asks, and waits for the answer or a refusal; then all over again.
Such a closed loop keeps the number of users meaningful under overload: who waits asks nothing else.

The front places each task; the board's admission refuses it if it is predicted to come too late;
its queue orders it; its scheduler picks the arm. What was encoded goes over the link to the pool
of LLM servers, first come, first served. A task whose deadline passes there is given up.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray

from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull
from mllm_sched.experiments.fleet import MODALITIES, TASKS, Board, Fleet, scheduler_for
from mllm_sched.experiments.lineup import SAFE
from mllm_sched.experiments.runner import Rule
from mllm_sched.experiments.strategy_costs import A100, ITEMS, Setting, sent_s
from mllm_sched.schedulers import Scheduler

Array = NDArray[np.float64]

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
class FleetScenario:
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
class FleetRun:
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

    scenario: FleetScenario
    tasks: pd.DataFrame

    @property
    def counted(self) -> pd.DataFrame:
        """The tasks that ended after the warm-up: arrived they may have before."""
        return self.tasks[self.tasks["ended_s"] >= self.scenario.warm_up_s]


WEIGHT = 0.1  # of the latest measurement in a running mean
SAME_ENERGY = 0.05  # boards whose energy differs by less than this share take turns
ANY_ENERGY = 1e9  # in its place: the board that is done soonest
FORGET_S = 10.0  # of what is said to come too late: older than that, it is tried again
NOBODY = -1  # no board can be in time


class Means:
    """Running means of latency and energy of each board, for one modality.

    A board that has not measured it yet is taken to be as fast as the median of the others and as
    frugal as the best, so that it is tried as soon as it is idle.
    """

    def __init__(self, boards: int, latency_s: float) -> None:
        self._prior_s = latency_s  # before anything was measured
        self.latency_s, self.energy_j = np.full(boards, latency_s), np.zeros(boards)
        self._known = np.zeros(boards, dtype=bool)
        self._measured_s = np.zeros(boards)  # when

    def forget(self, before_s: float) -> None:
        """Boards that were last measured before a moment are as good as new.

        Otherwise one slow run could keep all tasks from a board for ever: it would never be
        measured again.
        """
        old = self._measured_s < before_s
        self._known &= ~old
        self.latency_s[old], self.energy_j[old] = self._prior_s, 0.0

    def tell(self, board: int, latency_s: float, energy_j: float, now_s: float) -> None:
        """Take in a measurement of a board."""
        self._measured_s[board] = now_s
        weight = WEIGHT if self._known[board] else 1.0
        for mean, value in ((self.latency_s, latency_s), (self.energy_j, energy_j)):
            mean[board] += weight * (value - mean[board])
        self._known[board] = True
        if not self._known.all():
            self.latency_s[~self._known] = np.median(self.latency_s[self._known])
            self.energy_j[~self._known] = self.energy_j[self._known].min()


class Forecast:
    """Running means of what boards and the LLM took, and the work that waits at every board.

    It places tasks by the rule of ``mllm_sched.edge.placement``, for a thousand boards in
    microseconds; a test holds the two together.

    Parameters
    ----------
    scenario
        Its boards; before anything was measured an encoding is expected to take its limit.
    costs
        What is expected behind the encoder before anything was answered.
    """

    def __init__(self, scenario: FleetScenario, costs: Costs) -> None:
        self.encoding = [Means(scenario.edges, scenario.limit_s) for _ in MODALITIES]
        self.waiting_s = np.zeros(scenario.edges)
        self.until_s = np.zeros(scenario.edges)  # when each encoder is expected to be free
        self._refuses = scenario.front_refuses
        self._same = SAME_ENERGY if scenario.frugal_first else ANY_ENERGY
        self._alone_s = [costs.link_s[name] + costs.llm_s[name] for name in MODALITIES]
        self._rest_s = list(self._alone_s)
        self._answered_s = [0.0] * len(MODALITIES)

    def place(self, modality: int, deadline_s: float, now_s: float) -> int:
        """The board that is to take a task; ``NOBODY`` if it would be late on all of them.

        Unless the front refuses, it then names the soonest of those that would be in time if
        nothing waited there: the board knows what of that goes before this user.
        """
        board = self._placed(modality, deadline_s, now_s)
        if board == NOBODY:
            self.encoding[modality].forget(now_s - FORGET_S)
            board = self._placed(modality, deadline_s, now_s)
        if board == NOBODY and not self._refuses:
            left_s = deadline_s - now_s - self.rest_s(modality, now_s)
            board = soonest(self._backlog_s(now_s), self.encoding[modality].latency_s, left_s)
        return board

    def _placed(self, modality: int, deadline_s: float, now_s: float) -> int:
        known = self.encoding[modality]
        left_s = deadline_s - now_s - self.rest_s(modality, now_s)
        total_s = self._backlog_s(now_s) + known.latency_s
        return placed(total_s, known.energy_j, left_s, self._same)

    def _backlog_s(self, now_s: float) -> Array:
        return self.waiting_s + np.maximum(self.until_s - now_s, 0.0)

    def encode_s(self, board: int, modality: int) -> float:
        """Expected time of encoding."""
        return float(self.encoding[modality].latency_s[board])

    def rest_s(self, modality: int, now_s: float) -> float:
        """Expected time from the encoder to the end of the answer."""
        if now_s - self._answered_s[modality] > FORGET_S:
            self._rest_s[modality] = self._alone_s[modality]
        return self._rest_s[modality]

    def busy_s(self, board: int, now_s: float) -> float:
        """Until the encoder is expected to be free."""
        return max(float(self.until_s[board]) - now_s, 0.0)

    def waits(self, board: int, cost_s: float) -> None:
        """Work was added to a queue, or, if negative, left it."""
        self.waiting_s[board] += cost_s

    def begins(self, board: int, cost_s: float, now_s: float) -> None:
        """Work left a queue for the encoder."""
        self.waiting_s[board] -= cost_s
        self.until_s[board] = now_s + cost_s

    def encoded(
        self, board: int, modality: int, latency_s: float, energy_j: float, now_s: float
    ) -> None:
        """An encoding was measured."""
        self.encoding[modality].tell(board, latency_s, energy_j, now_s)

    def answered(self, modality: int, seconds: float, now_s: float) -> None:
        """An answer took so long after its encoding, or would have if it had not been given up."""
        self._answered_s[modality] = now_s
        self._rest_s[modality] += WEIGHT * (seconds - self._rest_s[modality])


def placed(total_s: Array, energy_j: Array, left_s: float, same: float = SAME_ENERGY) -> int:
    """Of the boards that are in time: the least energy, or the soonest of those near it.

    Parameters
    ----------
    total_s, energy_j
        As predicted for each board, shape (boards,).
    left_s
        What the time may be.
    same
        Share of the least energy by which others may be above it.

    Examples
    --------
    >>> total_s, energy_j = np.array([0.9, 0.5, 0.1]), np.array([1.00, 1.04, 2.0])
    >>> placed(total_s, energy_j, left_s=2.0), placed(total_s, energy_j, left_s=0.2)
    (1, 2)
    """
    in_time = np.flatnonzero(total_s <= left_s)
    if not len(in_time):
        return NOBODY
    near = in_time[energy_j[in_time] <= energy_j[in_time].min() * (1.0 + same)]
    return int(near[total_s[near].argmin()])


def soonest(backlog_s: Array, latency_s: Array, left_s: float) -> int:
    """The soonest of the boards that would be in time if nothing waited there; or ``NOBODY``.

    Examples
    --------
    >>> soonest(np.array([5.0, 3.0, 0.0]), np.array([0.1, 0.1, 9.0]), left_s=1.0)
    1
    """
    hope = latency_s <= left_s
    return int(np.where(hope, backlog_s + latency_s, np.inf).argmin()) if hope.any() else NOBODY


Steps = Generator[simpy.Event, Any, None]
NAN = float("nan")
COLUMNS = (
    *("user", "board", "modality", "arrived_s", "deadline_s", "outcome", "ended_s"),
    *("begun_s", "encode_s", "energy_j", "true_s", "llm_s"),
)


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A task on its way; its row of ``FleetRun.tasks`` in the end."""

    user: int
    modality: int
    arrived_s: float
    deadline_s: float  # the moment
    done: simpy.Event
    board: int = NOBODY
    outcome: str = UNDER_WAY
    ended_s: float = NAN
    begun_s: float = NAN
    encode_s: float = NAN
    energy_j: float = NAN
    true_s: float = NAN
    llm_s: float = NAN


def play(scenario: FleetScenario) -> FleetRun:
    """Simulate a scenario; the same one has the same outcome, to the last bit.

    Examples
    --------
    >>> played = play(FleetScenario(users=2, edges=1, warm_up_s=0.0, horizon_s=60.0))
    >>> set(played.tasks["outcome"]) <= {"answered", "under way"}
    True
    """
    return System(scenario).run()


class System:
    """Users, front, boards and LLM servers in one SimPy environment.

    Parameters
    ----------
    scenario
        What is played.

    Attributes
    ----------
    env, llm
        SimPy's clock, and the places of the LLM servers.
    requests
        Every task so far.
    under_way
        How many tasks have arrived and not ended.
    """

    def __init__(self, scenario: FleetScenario) -> None:
        self.scenario = scenario
        self.costs = costs(scenario.mbit_s)
        self.env = simpy.Environment()
        self.llm = simpy.Resource(self.env, scenario.llm_servers * PLACES)
        self.requests: list[SimulatedRequest] = []
        self.under_way = 0
        self.forecast = Forecast(scenario, self.costs)
        self.edges = [Edge(self, number) for number in range(scenario.edges)]
        loop = 0
        for user, at_once in enumerate(scenario.asks_at_once):
            for _ in range(at_once):
                self.env.process(self._user(user, np.random.default_rng([scenario.seed, 3, loop])))
                loop += 1

    def run(self) -> FleetRun:
        """Play to the end of the scenario."""
        self.env.run(until=self.scenario.ends_s)
        rows = [[getattr(request, name) for name in COLUMNS] for request in self.requests]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return FleetRun(
            self.scenario, table.assign(modality=table["modality"].map(MODALITIES.__getitem__))
        )

    def _user(self, user: int, rng: np.random.Generator) -> Steps:
        """One loop of thinking and asking; users begin in the midst of a thought."""
        low, high = self.scenario.deadlines_s
        bounds = np.cumsum(self.scenario.shares)[:-1]
        while True:
            yield self.env.timeout(rng.exponential(self.scenario.think_s))
            modality = int(np.searchsorted(bounds, rng.random(), side="right"))
            now_s = self.env.now
            request = SimulatedRequest(
                user, modality, now_s, now_s + rng.uniform(low, high), self.env.event()
            )
            self.requests.append(request)
            self.under_way += 1
            self._place(request)
            yield request.done

    def _place(self, request: SimulatedRequest) -> None:
        """To a board, unless it would be late on all of them."""
        board = self.forecast.place(request.modality, request.deadline_s, self.env.now)
        if board == NOBODY:
            self.end(request, "too-late")
        else:
            request.board = board
            self.edges[board].admit(request)

    def answer(self, request: SimulatedRequest) -> Steps:
        """From the encoder over the link onto a place of the LLM; given up at the deadline.

        A server that looks ahead gives up as soon as the answer can no longer be in time.
        """
        name, encoded_s = MODALITIES[request.modality], self.env.now
        needs_s = self.costs.llm_s[name]
        given_up_s = request.deadline_s - (needs_s if self.scenario.looks_ahead else 0.0)
        yield self.env.timeout(self.costs.link_s[name])
        with self.llm.request() as turn:
            if not turn.triggered:
                yield turn | self.env.timeout(max(given_up_s - self.env.now, 0.0))
            waited_s = self.env.now - encoded_s
            if turn.triggered and self.env.now <= given_up_s:
                request.llm_s = min(needs_s, request.deadline_s - self.env.now)
                yield self.env.timeout(request.llm_s)
        self.forecast.answered(request.modality, waited_s + needs_s, self.env.now)
        self.end(request, ANSWERED if request.llm_s == needs_s else LATE)

    def end(self, request: SimulatedRequest, outcome: str) -> None:
        """A task has come to its end; its user goes on."""
        request.outcome, request.ended_s = outcome, self.env.now
        self.under_way -= 1
        request.done.succeed()


class Edge:
    """One board with its queue, its scheduler and its encoder, which does one task at a time."""

    def __init__(self, system: System, number: int) -> None:
        scenario = system.scenario
        self.system, self.number = system, number
        self.board = Board(number, scenario.seed, scenario.fleet)
        per_user = scenario.per_user if scenario.fair else scenario.waiting
        self.queue = FairQueue(scenario.waiting, per_user)
        self._work: simpy.Event | None = None  # what an idle encoder waits for
        system.env.process(self._encode())

    @cached_property
    def scheduler(self) -> Scheduler:
        """Made when the first task comes."""
        scenario = self.system.scenario
        return scheduler_for(
            self.board, scenario.rule, scenario.limit_s, [scenario.seed, 2, self.number]
        )

    def admit(self, request: SimulatedRequest) -> None:
        """Take a task into the queue, or refuse it."""
        forecast, now_s = self.system.forecast, self.system.env.now
        cost_s = forecast.encode_s(self.number, request.modality)
        user = str(request.user) if self.system.scenario.fair else ""
        entry = Entry(user, None, now_s, request.deadline_s, cost_s, request)
        ahead_s = forecast.busy_s(self.number, now_s) + self.queue.ahead_s(entry)
        if now_s + ahead_s + self._service_s(entry) > request.deadline_s:
            return self.system.end(request, "too-late")
        try:
            pushed = self.queue.put(entry)
        except QueueFull:
            return self.system.end(request, "queue-full")
        forecast.waits(self.number, cost_s)
        if pushed is not None:
            self._drop(pushed, "pushed-out")
        if self._work is not None and not self._work.triggered:
            self._work.succeed()
        return None

    def _service_s(self, entry: Entry) -> float:
        return entry.cost_s + self.system.forecast.rest_s(entry.item.modality, self.system.env.now)

    def _drop(self, entry: Entry, why: str) -> None:
        self.system.forecast.waits(self.number, -entry.cost_s)
        self.system.end(entry.item, why)

    def _encode(self) -> Steps:
        env, forecast = self.system.env, self.system.forecast
        while True:
            for entry in self.queue.expired(env.now, self._service_s):
                self._drop(entry, "expired")
            if not len(self.queue):
                self._work = env.event()
                yield self._work
                continue
            [entry] = self.queue.take(env.now)
            request: SimulatedRequest = entry.item
            forecast.begins(self.number, entry.cost_s, env.now)
            name = MODALITIES[request.modality]
            decision = self.scheduler.ask(context={"modality": name})
            run = self.board.run(decision.arm, name, env.now)
            request.begun_s, request.true_s = env.now, run.true_latency_s
            yield env.timeout(run.latency_s)
            request.encode_s, request.energy_j = run.latency_s, run.energy_j
            self.scheduler.tell(decision.id, latency_s=run.latency_s, energy_j=run.energy_j)
            self.queue.charge(entry, run.latency_s)
            measured = run.latency_s, run.energy_j, env.now
            forecast.encoded(self.number, request.modality, *measured)
            env.process(self.system.answer(request))
