"""The running system, simulated: many users, many boards, one pool of LLM servers.

Schedulers and queue are those of the running system; boards (``fleet.py``), users, link and LLM are
simulated in discrete events. A user thinks, asks, waits for the answer or a refusal, and thinks
again (a closed loop). The front places each task; admission refuses it if it is predicted to come
too late; the board's queue orders it; its scheduler picks the arm. The features go over the link to
the pool of LLM servers, first come, first served. A task that gets late there is given up.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import ArrayLike, NDArray

from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull
from mllm_sched.edge.placement import SAME_ENERGY
from mllm_sched.experiments.comparison import SAFE
from mllm_sched.experiments.fleet import (
    MODALITIES,
    SHARES,
    TASKS,
    Board,
    Fleet,
    nominal_means,
    scheduler_for,
)
from mllm_sched.experiments.metrics import mean_interval
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.runner import Rule
from mllm_sched.experiments.strategy_costs import A100, ITEMS, Setting, sent_s
from mllm_sched.process_setup import leave_out_loaded, uncollected
from mllm_sched.schedulers import Scheduler

Array = NDArray[np.float64]

ANSWERED, LATE = "answered", "late"  # late: encoded, but its deadline passed before its answer
SHED = ("too-late", "queue-full", "pushed-out", "expired")  # before anything was spent on it
UNDER_WAY = "under way"
PLACES = 4  # answers at once on one A100
MBIT_S = 1000.0  # link of every board
PER_USER = 16  # tasks of one user in a queue
BOUNDS = np.cumsum(SHARES)[:-1]


@dataclass(frozen=True)
class FleetScenario:
    """What is simulated; everything that its outcome depends on."""

    users: int = 100
    edges: int = 10  # boards, each with a queue and a scheduler of its own
    llm_servers: int = 32  # A100s that all boards share, with ``PLACES`` answers at once on each
    rule: Rule = SAFE  # scheduler of every board
    think_s: float = 30.0  # mean time from an answer or refusal to the next task; exponential
    deadlines_s: tuple[float, float] = (2.0, 4.0)  # from arrival; uniform in this range
    limit_s: float = 0.2  # on the latency of encoding
    fleet: Fleet = field(default_factory=Fleet)
    heavy_users: int = 0  # so many of the users ask for ``heavy_at_once`` things at once
    heavy_at_once: int = 10
    looks_ahead: bool = True  # the LLM server begins only what it can still end in time
    frugal_first: bool = True  # least energy of the boards in time; else the soonest
    front_refuses: bool = False  # what is late on all boards; else only boards refuse
    fair: bool = True  # the queue tells users apart; else it goes by deadline alone
    waiting: int = 64  # bound of each board's queue
    warm_up_s: float = 30.0
    horizon_s: float = 120.0  # tasks that end in this time after ``warm_up_s`` count
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.think_s > 0:  # users would ask without end
            raise ValueError(f"think_s={self.think_s}: expected above 0")

    @property
    def asks_at_once(self) -> list[int]:
        """How many loops of asking and thinking each user has; the heavy ones come first."""
        light = self.users - self.heavy_users
        return [self.heavy_at_once] * self.heavy_users + [1] * light


@cache
def costs() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a task on the link and on the LLM server, by modality, as in notebook 01."""
    setting = Setting(mbit_s=MBIT_S)
    items = {item.encoder: item for item in ITEMS}
    mine = {name: items[task.encoder] for name, task in TASKS.items()}
    return (
        {name: sent_s(setting, setting.feature_bytes(item)) for name, item in mine.items()},
        {name: setting.language.seconds(A100, item.rows + 32) for name, item in mine.items()},
    )


# -- The front: it places tasks by what boards and the LLM took

WEIGHT = 0.1  # of the latest measurement in a running mean
ANY_ENERGY = 1e9  # in the place of SAME_ENERGY: the board that is done soonest
FORGET_S = 10.0  # of what is said to come too late: older than that, it is tried again
NOBODY = -1  # no board can be in time


class Forecast:
    """Places tasks by the rule of ``mllm_sched.edge.placement``, vectorised over boards.

    ``latency_s`` and ``energy_j`` are running means of encoding, shape (modalities, boards);
    ``waiting_s`` is the work in each board's queue, ``until_s`` when its encoder is free.

    A board that has not measured a modality yet is taken to be as fast as the median of the others
    and as frugal as the best, so that it is tried as soon as it is idle. Before anything was
    measured an encoding is expected to take its limit.
    """

    def __init__(self, scenario: FleetScenario) -> None:
        shape = len(MODALITIES), scenario.edges
        self._prior_s = scenario.limit_s
        self.latency_s, self.energy_j = np.full(shape, self._prior_s), np.zeros(shape)
        self._known, self._measured_s = np.zeros(shape, dtype=bool), np.zeros(shape)
        self.waiting_s, self.until_s = np.zeros(scenario.edges), np.zeros(scenario.edges)
        self._refuses = scenario.front_refuses
        self._same = SAME_ENERGY if scenario.frugal_first else ANY_ENERGY
        link_s, llm_s = costs()
        self._alone_s = [link_s[name] + llm_s[name] for name in MODALITIES]
        self._rest_s = list(self._alone_s)
        self._answered_s = [0.0] * len(MODALITIES)

    def place(self, modality: int, deadline_s: float, now_s: float) -> int:
        """The board that is to take a task; ``NOBODY`` if it would be late on all of them.

        Unless the front refuses: then the soonest of those in time if nothing waited there.
        """
        left_s = deadline_s - now_s - self.rest_s(modality, now_s)
        backlog_s = self.waiting_s + np.maximum(self.until_s - now_s, 0.0)
        board = self._placed(modality, backlog_s, left_s)
        if board == NOBODY and self._forget(modality, now_s - FORGET_S):
            board = self._placed(modality, backlog_s, left_s)
        if board == NOBODY and not self._refuses:
            board = soonest(backlog_s, self.latency_s[modality], left_s)
        return board

    def _placed(self, modality: int, backlog_s: Array, left_s: float) -> int:
        total_s = backlog_s + self.latency_s[modality]
        return placed(total_s, self.energy_j[modality], left_s, self._same)

    def _forget(self, modality: int, before_s: float) -> bool:
        """Treat boards last measured before a moment as new, or none would try them; if any are."""
        old = self._measured_s[modality] < before_s
        if not old.any():
            return False
        self._known[modality] &= ~old
        self.latency_s[modality, old], self.energy_j[modality, old] = self._prior_s, 0.0
        return True

    def rest_s(self, modality: int, now_s: float) -> float:
        """Expected time from the encoder to the end of the answer."""
        if now_s - self._answered_s[modality] > FORGET_S:
            self._rest_s[modality] = self._alone_s[modality]
        return self._rest_s[modality]

    def encoded(
        self, board: int, modality: int, latency_s: float, energy_j: float, now_s: float
    ) -> None:
        """An encoding was measured."""
        known = self._known[modality]
        self._measured_s[modality, board] = now_s
        weight = WEIGHT if known[board] else 1.0
        known[board] = True
        latencies_s, energies_j = self.latency_s[modality], self.energy_j[modality]
        for mean, value in ((latencies_s, latency_s), (energies_j, energy_j)):
            mean[board] += weight * (value - mean[board])
        if not known.all():
            ordered = np.sort(latencies_s[known])  # np.median takes ten times as long
            latencies_s[~known] = (ordered[~(len(ordered) // 2)] + ordered[len(ordered) // 2]) / 2
            energies_j[~known] = energies_j[known].min()

    def answered(self, modality: int, seconds: float, now_s: float) -> None:
        """An answer took so long after its encoding, or would have if it had not been given up."""
        self._answered_s[modality] = now_s
        self._rest_s[modality] += WEIGHT * (seconds - self._rest_s[modality])


def placed(total_s: Array, energy_j: Array, left_s: float, same: float = SAME_ENERGY) -> int:
    """Of the boards that are in time: the least energy, or the soonest of those near it.

    ``total_s`` and ``energy_j`` are predictions, shape (boards,); ``same`` is the share by which
    others may be above the least energy.
    """
    in_time = np.flatnonzero(total_s <= left_s)
    if not len(in_time):
        return NOBODY
    near = in_time[energy_j[in_time] <= energy_j[in_time].min() * (1.0 + same)]
    return int(near[total_s[near].argmin()])


def soonest(backlog_s: Array, latency_s: Array, left_s: float) -> int:
    """The soonest of the boards that would be in time if nothing waited there; or ``NOBODY``."""
    hope = latency_s <= left_s
    return int(np.where(hope, backlog_s + latency_s, np.inf).argmin()) if hope.any() else NOBODY


# -- The simulation

Steps = Generator[simpy.Event, Any, None]
NAN = float("nan")


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A task on its way, and its row of ``play`` in the end."""

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


def play(scenario: FleetScenario) -> pd.DataFrame:
    """Simulate a scenario, deterministically.

    One row a task, in order of arrival: ``user`` and ``board`` (numbers; board -1: refused by
    all), ``modality``, ``arrived_s``, ``deadline_s`` (moments), ``outcome``, ``ended_s`` (NaN
    under way), ``begun_s`` (of encoding), ``encode_s``, ``energy_j``, ``true_s`` (mean latency of
    its arm then; all four NaN if it was not encoded), ``llm_s`` (on a place of the LLM).
    """
    return System(scenario).run()


class System:
    """Users, front, boards and LLM servers in one SimPy environment."""

    def __init__(self, scenario: FleetScenario) -> None:
        self.scenario = scenario
        self.link_s, self.llm_s = costs()
        self.env = simpy.Environment()
        self.llm = simpy.Resource(self.env, scenario.llm_servers * PLACES)
        self.requests: list[SimulatedRequest] = []
        self.under_way = 0
        self.forecast = Forecast(scenario)
        self.edges = [Edge(self, number) for number in range(scenario.edges)]
        loop = 0
        for user, at_once in enumerate(scenario.asks_at_once):
            for _ in range(at_once):
                self.env.process(self._user(user, np.random.default_rng([scenario.seed, 3, loop])))
                loop += 1

    def run(self) -> pd.DataFrame:
        """Play to the end of the scenario; see ``play``."""
        self.env.run(until=self.scenario.warm_up_s + self.scenario.horizon_s)
        names = [each.name for each in fields(SimulatedRequest) if each.name != "done"]
        rows = [[getattr(request, name) for name in names] for request in self.requests]
        table = pd.DataFrame(rows, columns=names)
        return table.assign(modality=table["modality"].map(MODALITIES.__getitem__))

    def _user(self, user: int, rng: np.random.Generator) -> Steps:
        """One loop of thinking and asking."""
        low, high = self.scenario.deadlines_s
        while True:
            yield self.env.timeout(rng.exponential(self.scenario.think_s))
            modality = int(BOUNDS.searchsorted(rng.random(), side="right"))
            now_s = self.env.now
            request = SimulatedRequest(
                user, modality, now_s, now_s + rng.uniform(low, high), self.env.event()
            )
            self.requests.append(request)
            self.under_way += 1
            request.board = self.forecast.place(modality, request.deadline_s, now_s)
            if request.board == NOBODY:
                self.end(request, "too-late")
            else:
                self.edges[request.board].admit(request)
            yield request.done

    def answer(self, request: SimulatedRequest) -> Steps:
        """From the encoder over the link onto a place of the LLM; given up when it gets late."""
        name, encoded_s = MODALITIES[request.modality], self.env.now
        needs_s = self.llm_s[name]
        given_up_s = request.deadline_s - (needs_s if self.scenario.looks_ahead else 0.0)
        yield self.env.timeout(self.link_s[name])
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
    """A board with its queue, its scheduler and its encoder, which does one task at a time."""

    def __init__(self, system: System, number: int) -> None:
        scenario = system.scenario
        self.system, self.number = system, number
        self.queue = FairQueue(scenario.waiting, PER_USER if scenario.fair else scenario.waiting)
        self._work: simpy.Event | None = None  # what an idle encoder waits for
        system.env.process(self._encode())

    @cached_property  # made when the first task comes: of 1000 boards few may be asked
    def board(self) -> Board:
        """The simulated board."""
        scenario = self.system.scenario
        return Board(self.number, scenario.seed, scenario.fleet)

    @cached_property
    def scheduler(self) -> Scheduler:
        """Its scheduler."""
        scenario = self.system.scenario
        rng = [scenario.seed, 2, self.number]
        return scheduler_for(self.board, scenario.rule, scenario.limit_s, rng)

    def admit(self, request: SimulatedRequest) -> None:
        """Take a task into the queue, or refuse it."""
        forecast, now_s = self.system.forecast, self.system.env.now
        cost_s = float(forecast.latency_s[request.modality, self.number])
        user = str(request.user) if self.system.scenario.fair else ""
        entry = Entry(user, None, now_s, request.deadline_s, cost_s, request)
        busy_s = max(float(forecast.until_s[self.number]) - now_s, 0.0)
        ahead_s = busy_s + self.queue.ahead_s(entry)
        if now_s + ahead_s + self._service_s(entry) > request.deadline_s:
            return self.system.end(request, "too-late")
        try:
            pushed = self.queue.put(entry)
        except QueueFull:
            return self.system.end(request, "queue-full")
        forecast.waiting_s[self.number] += cost_s
        if pushed is not None:
            self._drop(pushed, "pushed-out")
        if self._work is not None and not self._work.triggered:
            self._work.succeed()
        return None

    def _service_s(self, entry: Entry) -> float:
        return entry.cost_s + self.system.forecast.rest_s(entry.item.modality, self.system.env.now)

    def _drop(self, entry: Entry, why: str) -> None:
        self.system.forecast.waiting_s[self.number] -= entry.cost_s
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
            forecast.waiting_s[self.number] -= entry.cost_s
            forecast.until_s[self.number] = env.now + entry.cost_s
            name = MODALITIES[request.modality]
            decision = self.scheduler.ask(context={"modality": name})
            run = self.board.run(decision.arm, name, env.now)
            request.begun_s, request.true_s = env.now, run.true_latency_s
            yield env.timeout(run.latency_s)
            request.encode_s, request.energy_j = run.latency_s, run.energy_j
            self.scheduler.tell(decision.id, latency_s=run.latency_s, energy_j=run.energy_j)
            self.queue.charge(entry, run.latency_s)
            forecast.encoded(self.number, request.modality, run.latency_s, run.energy_j, env.now)
            env.process(self.system.answer(request))


# -- What is said of a run, and of many

QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
TASKS_ASKED = 400  # in a scenario of ``lasting``, unless that is too short
SHORTEST_S = 7.0


def counted(scenario: FleetScenario, tasks: pd.DataFrame) -> pd.DataFrame:
    """The tasks that ended after the warm-up."""
    return tasks[tasks["ended_s"] >= scenario.warm_up_s]


def measures(scenario: FleetScenario, tasks: pd.DataFrame) -> dict[str, float]:
    """What is said of one run, over the tasks that ended after the warm-up.

    Outcomes are shares of these tasks; ``beyond`` is the share of encoded tasks whose arm truly
    violates the limit; ``p50_s`` and so on are quantiles of the time to the end of an answer;
    ``energy_j`` is all that encoders took over the answers in time; busy ones are shares of time;
    ``jain`` is ``fairness``. NaN for light or heavy users where there are none.
    """
    tasks, seconds = counted(scenario, tasks), scenario.horizon_s
    shares = tasks["outcome"].value_counts() / max(len(tasks), 1)
    in_time = tasks["outcome"] == ANSWERED
    answered, encoded = tasks[in_time], tasks[tasks["encode_s"].notna()]
    took_s = answered["ended_s"] - answered["arrived_s"]
    reasons = {name: float(shares.get(name, 0.0)) for name in (ANSWERED, LATE, *SHED)}
    return {
        "asked_hz": len(tasks) / seconds,
        "answered_hz": len(answered) / seconds,
        **reasons,
        "shed": sum(reasons[name] for name in SHED),
        "beyond": float((encoded["true_s"] > scenario.limit_s).mean()),
        **{name: float(took_s.quantile(q)) for name, q in QUANTILES.items()},
        "energy_j": float(encoded["energy_j"].sum()) / len(answered) if len(answered) else np.nan,
        "encoders_busy": float(encoded["encode_s"].sum()) / (scenario.edges * seconds),
        "llm_busy": float(tasks["llm_s"].sum()) / (scenario.llm_servers * PLACES * seconds),
        "jain": fairness(tasks),
        "light_answered": float(in_time[tasks["user"] >= scenario.heavy_users].mean()),
        "heavy_answered": float(in_time[tasks["user"] < scenario.heavy_users].mean()),
    }


def fairness(tasks: pd.DataFrame) -> float:
    """Jain's index of answers over a max-min fair split of as many, of users who asked."""
    asked = tasks.groupby("user").size()
    got = tasks[tasks["outcome"] == ANSWERED].groupby("user").size().reindex(asked.index).fillna(0)
    return jain_index(got / np.maximum(max_min_share(asked, got.sum()), 1e-12))


def jain_index(shares: ArrayLike) -> float:
    """Jain's index: 1 if all have the same, 1/n if one of n has everything; NaN for nobody.

    Jain, Chiu and Hawe, DEC-TR-301 (1984).
    """
    values = np.asarray(shares, dtype=np.float64)
    squares = float(len(values) * (values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else float("nan")


def max_min_share(wanted: ArrayLike, total: float) -> Array:
    """The max-min fair split: at most what is wanted; the rest goes to the others evenly."""
    demand = np.asarray(wanted, dtype=np.float64)
    order = np.argsort(demand, kind="stable")
    given, left = np.zeros(len(demand)), float(total)
    for place, user in enumerate(order):
        given[user] = min(float(demand[user]), left / (len(order) - place))
        left -= given[user]
    return given


def play_all(
    cases: Sequence[tuple[Mapping[str, Any], FleetScenario]], seeds: int, first_seed: int = 0
) -> pd.DataFrame:
    """A row for every scenario and seed: what names the scenario, ``seed``, and ``measures``."""
    jobs = [
        (names, replace(scenario, seed=seed))
        for names, scenario in cases
        for seed in range(first_seed, first_seed + seeds)
    ]
    return pd.DataFrame(spread(_job, jobs, label="runs"))


def _job(names: Mapping[str, Any], scenario: FleetScenario) -> dict[str, Any]:
    leave_out_loaded()  # also drops what the run before left: hundreds of MB in cycles
    with uncollected():
        return {**names, "seed": scenario.seed, **measures(scenario, play(scenario))}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of ``play_all`` with 95 % intervals ``_low``, ``_high``; and ``n``."""
    names, rows = list(runs.columns[: runs.columns.get_loc("seed")]), []
    for key, group in runs.groupby(names, sort=False, dropna=False):
        row: dict[str, Any] = {**dict(zip(names, key, strict=True)), "n": len(group)}
        for name in runs.columns[len(names) + 1 :]:
            values = group[name].dropna().to_numpy()
            bounds = mean_interval(values) if len(values) else (np.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def lasting(scenario: FleetScenario) -> FleetScenario:
    """With a horizon for ``TASKS_ASKED`` and half as long a warm-up; at least ``SHORTEST_S``."""
    horizon_s = max(SHORTEST_S, TASKS_ASKED * scenario.think_s / sum(scenario.asks_at_once))
    return replace(scenario, horizon_s=horizon_s, warm_up_s=max(SHORTEST_S, horizon_s / 2))


def capacity_hz(scenario: FleetScenario) -> dict[str, float]:
    """Most tasks per second that users ask, and that encoders (best arm) and LLM servers do."""
    (on_link_s, on_llm_s), encode_s, llm_s, alone_s = costs(), 0.0, 0.0, 0.0
    for name, share in zip(MODALITIES, SHARES, strict=True):
        means = nominal_means()[name]
        within = np.where(means.latency_s <= scenario.limit_s, means.energy_j, np.inf)
        encode_s += share * float(means.latency_s[within.argmin()])
        llm_s += share * on_llm_s[name]
        alone_s += share * on_link_s[name]
    alone_s += encode_s + llm_s
    return {
        "users": sum(scenario.asks_at_once) / (scenario.think_s + alone_s),
        "encoders": scenario.edges / encode_s,
        "LLM servers": scenario.llm_servers * PLACES / llm_s,
    }


def loaded(base: FleetScenario, load: float) -> FleetScenario:
    """As many users as ask for ``load`` times what encoders and LLM servers can do at most."""
    one = capacity_hz(replace(base, users=1, heavy_users=0))
    least_hz = min(one["encoders"], one["LLM servers"])
    return replace(base, users=max(1, round(load * least_hz / one["users"])))
