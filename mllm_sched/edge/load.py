"""Users who ask a running system one task after another, and what became of their tasks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import DeadlineMissed, NodeBusy, NodeError
from mllm_sched.pipeline.requests import Item, Request, prompt_ids
from mllm_sched.pipeline.wire import pack

QUESTION = b"What is this?"
PASSING = ("journal", "draining")  # reasons of refusals that count as unreachable
REMEMBERED = 8  # answered requests of a user that can be sent again


@dataclass(frozen=True)
class Asked:
    """A task of a user, and what became of it.

    ``outcome`` is ``answered``, ``shed`` (refused for now), ``late`` (the deadline passed), or
    ``failed``.
    """

    user: str
    id: str
    began_s: float  # since the load began
    total_s: float
    outcome: str
    why: str = ""  # of a task that was not answered
    tokens: tuple[int, ...] = ()
    tries: int = 0  # how often it was sent
    retry_s: float = 0.0  # after which it may be sent again; 0 if the refusal says none
    # Of its first item's encoding:
    agent: str = ""
    arm: str = ""
    latency_s: float = float("nan")
    energy_j: float = float("nan")
    evidence: str = ""
    energy_evidence: str = ""


class LoadUser:
    """Asks one task after another: ``items(n)`` are the raw items of the n-th.

    ``client`` has the user's token.
    """

    def __init__(
        self,
        name: str,
        client: EdgeClient,
        items: Callable[[int], Sequence[Item]],
        deadline_s: float,
        max_new_tokens: int = 8,
    ) -> None:
        self.name, self.client, self.items = name, client, items
        self.deadline_s, self.max_new_tokens = deadline_s, max_new_tokens
        self._card = client.describe(60.0)
        self._answered: deque[tuple[str, bytes]] = deque(maxlen=REMEMBERED)

    def ask(self, number: int, since_s: float = 0.0) -> Asked:
        """Ask the task of that number, and wait for what becomes of it."""
        items = tuple(self.items(number))
        prompt = prompt_ids(self._card.markers, [item.modality for item in items], QUESTION)
        request = Request(prompt, items, self.max_new_tokens)
        data = pack(request, self._card.model)
        asked = self._send(request.id, data, since_s)
        if asked.outcome == "answered":
            self._answered.append((request.id, data))
        return asked

    def ask_again(self) -> list[Asked]:
        """Send the last requests that were answered once more, each under its id."""
        return [self._send(name, data) for name, data in self._answered]

    def _send(self, name: str, data: bytes, since_s: float = 0.0) -> Asked:
        begun_s = time.monotonic()

        def asked(outcome: str, **fields: Any) -> Asked:
            total_s = time.monotonic() - begun_s
            return Asked(self.name, name, begun_s - since_s, total_s, outcome, **fields)

        try:
            answer = self.client.ask(data, name, self.deadline_s)
        except DeadlineMissed as late:
            return asked("late", why=str(late))
        except NodeError as error:
            shed = isinstance(error, NodeBusy) or error.reason in PASSING
            why = f"{error.code.name}: {error}"
            return asked("shed" if shed else "failed", why=why, retry_s=error.retry_s)
        encoding = {}
        if answer.runs:
            run = answer.runs[0]
            names = "agent", "arm", "latency_s", "energy_j", "evidence", "energy_evidence"
            encoding = {field: getattr(run, field) for field in names}
            encoding["energy_j"] = run.energy_j or float("nan")  # 0 on the wire: not measured
        return asked("answered", tokens=answer.tokens, tries=answer.tries, **encoding)


def keep_asking(
    users: Sequence[LoadUser],
    *,
    seconds: float = float("inf"),
    tasks: int | None = None,
    pause_s: Callable[[np.random.Generator], float] = lambda rng: 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Let users ask, each in a thread, for some seconds or until each has asked so many tasks.

    Whichever is over first ends it; a task under way is waited for. Between two tasks a user waits
    ``pause_s`` of its own generator, at least what a refusal says. Returns one row a task, in the
    order they were asked; the columns of ``Asked``.
    """
    asked: list[Asked] = []
    lock, begun_s = threading.Lock(), time.monotonic()

    def work(user: LoadUser, rng: np.random.Generator) -> None:
        number = 0
        while time.monotonic() - begun_s < seconds and (tasks is None or number < tasks):
            done = user.ask(number, begun_s)
            with lock:
                asked.append(done)
            number += 1
            left_s = begun_s + seconds - time.monotonic()
            if left_s > 0 and number != tasks:
                time.sleep(min(max(pause_s(rng), done.retry_s), left_s))

    rngs = np.random.default_rng(seed).spawn(len(users))
    threads = [threading.Thread(target=work, args=pair) for pair in zip(users, rngs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pd.DataFrame(map(asdict, sorted(asked, key=lambda one: one.began_s)))
