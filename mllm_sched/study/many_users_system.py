"""A discrete-event simulation of the running system, with its own queue and schedulers.

A user thinks, asks, and waits for the answer or a refusal; then all over again. Such a closed loop
keeps the number of users meaningful under overload: who waits does not ask again meanwhile.

The front places each task; the board's admission refuses it if it is predicted to come too late;
its queue orders it; its scheduler picks the arm. What was encoded goes over the link to the pool
of LLM servers, first come, first served. A task whose deadline passes there is given up.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import simpy

from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull
from mllm_sched.schedulers import Scheduler
from mllm_sched.study.many_users import ANSWERED, LATE, PLACES, UNDER_WAY, Played, Scenario, costs
from mllm_sched.study.many_users_boards import MODALITIES, Board, scheduler_for
from mllm_sched.study.many_users_front import NOBODY, Forecast

Steps = Generator[simpy.Event, Any, None]
NAN = float("nan")
COLUMNS = (
    *("user", "board", "modality", "arrived_s", "deadline_s", "outcome", "ended_s"),
    *("begun_s", "encode_s", "energy_j", "true_s", "llm_s"),
)


@dataclass(slots=True, eq=False)
class Request:
    """A task on its way; its row of ``Played.tasks`` in the end."""

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


def play(scenario: Scenario) -> Played:
    """Simulate a scenario; the same one has the same outcome, to the last bit.

    Examples
    --------
    >>> played = play(Scenario(users=2, edges=1, warm_up_s=0.0, horizon_s=60.0))
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

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.costs = costs(scenario.mbit_s)
        self.env = simpy.Environment()
        self.llm = simpy.Resource(self.env, scenario.llm_servers * PLACES)
        self.requests: list[Request] = []
        self.under_way = 0
        self.forecast = Forecast(scenario, self.costs)
        self.edges = [Edge(self, number) for number in range(scenario.edges)]
        loop = 0
        for user, at_once in enumerate(scenario.asks_at_once):
            for _ in range(at_once):
                self.env.process(self._user(user, np.random.default_rng([scenario.seed, 3, loop])))
                loop += 1

    def run(self) -> Played:
        """Play to the end of the scenario."""
        self.env.run(until=self.scenario.ends_s)
        rows = [[getattr(request, name) for name in COLUMNS] for request in self.requests]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return Played(
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
            request = Request(
                user, modality, now_s, now_s + rng.uniform(low, high), self.env.event()
            )
            self.requests.append(request)
            self.under_way += 1
            self._place(request)
            yield request.done

    def _place(self, request: Request) -> None:
        """To a board, unless it would be late on all of them."""
        board = self.forecast.place(request.modality, request.deadline_s, self.env.now)
        if board == NOBODY:
            self.end(request, "too-late")
        else:
            request.board = board
            self.edges[board].admit(request)

    def answer(self, request: Request) -> Steps:
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

    def end(self, request: Request, outcome: str) -> None:
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

    def admit(self, request: Request) -> None:
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
            request: Request = entry.item
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
