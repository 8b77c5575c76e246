"""`kill -9` of agent, server and front at random under load: what is lost, what comes twice.

    python benchmarks/edge_kill.py [--kills 30] [--users 8] [--seed 0]

A front, two agents on this machine and an LLM server, kept up by a supervisor. Users ask without a
pause. Fails if a task that was answered has no measurement in any journal, if a request that is
sent again gets another answer than it got, or is encoded once more, if an answer is short, if a
scheduler's state is not to the last bit what its journal makes of a new one, if a task fails
otherwise than by being refused or late, or if the system does not answer everybody in time
afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from mllm_sched.edge.config import AgentConfig, read_config
from mllm_sched.edge.journal import Journal, open_reader
from mllm_sched.edge.learner import replay
from mllm_sched.edge.load import LoadUser, keep_asking
from mllm_sched.edge.run_agent import open_device_of, spec_of
from mllm_sched.edge.system import LocalSystem, Supervisor
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.small_models import END
from mllm_sched.schedulers import Scheduler
from mllm_sched.schedulers.persistence import metadata, pack

AGENTS, NEW_TOKENS, DEADLINE_S = ("edge-1", "edge-2"), 16, 60.0
AFTER_S = 60.0  # within which everybody has to be answered again


def main() -> int:
    """Print what happened; 1 if it should not have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good, bad = run(Path(folder), options.kills, options.users, options.seed)
    for what, count in good.items():
        print(f"  {what}: {count}")
    print("must all be 0:")
    for what, count in bad.items():
        print(f"  {what}: {count}")
    return int(any(bad.values()) or not good["answered"])


def run(
    folder: Path, kills: int, count: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Load, kills, and what is found: what may be, and what may not."""
    agents = {name: {"device": "host", "scheduler": {"limit_s": 0.5}} for name in AGENTS}
    names = {f"user-{number}": {"rate_hz": 1000.0, "burst": 1000} for number in range(count)}
    with LocalSystem(folder, agents, front=True, users=names) as system:
        users = [
            LoadUser(name, system.client(name), item, DEADLINE_S, NEW_TOKENS) for name in names
        ]
        over = threading.Event()
        tables: list[pd.DataFrame] = []
        with Supervisor(system.processes) as supervisor:
            asking = threading.Thread(target=lambda: tables.append(until(users, over, seed)))
            asking.start()
            killed = kill(system, kills, np.random.default_rng(seed))
            over.set()
            asking.join()
            begun_s = time.monotonic()
            after = keep_asking(users, tasks=2)
            back_s = time.monotonic() - begun_s
            asked = pd.concat([*tables, after], ignore_index=True)
            before = sum(map(len, measured(system).values()))
            again = pd.DataFrame(asdict(one) for user in users for one in user.ask_again())
            encoded_again = sum(map(len, measured(system).values())) - before
            restarts = sum(supervisor.restarts.values())
        tasks = {task for rows in measured(system).values() for task in rows}
    outcomes = asked["outcome"].value_counts()
    good = {
        **{f"killed: {name}": number for name, number in sorted(killed.items())},
        **{"restarts": restarts, "tasks": len(asked)},
        **{what: int(outcomes.get(what, 0)) for what in ("answered", "shed", "late")},
        **{"answers on a second try or later": int((asked["tries"] > 1).sum())},
        **{"seconds until all had two more answers": round(back_s, 1)},
    }
    answered = asked[asked["outcome"] == "answered"]
    keys = answered["user"] + "/" + answered["id"] + "/0"
    whole = answered["tokens"].map(lambda some: len(some) == NEW_TOKENS or some[-1] == END)
    same = again.merge(answered, on=["user", "id"], suffixes=("", "_first"))
    differ = (same["tokens"] != same["tokens_first"]) | (same["arm"] != same["arm_first"])
    print(asked.loc[asked["outcome"] == "failed", "why"].value_counts().head(5).to_string())
    bad = {
        "answered, not in a journal": int((~keys.isin(tasks)).sum()),
        "asked again, another answer": int(differ.sum()),
        "asked again, encoded again": encoded_again,
        "answers cut short": int((~whole).sum()),
        "tasks that failed": int(outcomes.get("failed", 0)),
        "states other than their journal's": sum(
            not same_as_journal(system.journal(name)) for name in AGENTS
        ),
        "not answered afterwards": int((after["outcome"] != "answered").sum()),
        "too long until all were answered again": int(back_s > AFTER_S),
    }
    return good, bad


def measured(system: LocalSystem) -> dict[str, list[str]]:
    """Tasks that were measured, by agent, as often as they were."""
    return {name: tasks_of(system.journal(name)) for name in AGENTS}


def tasks_of(path: Path) -> list[str]:
    """Of the measured events of a journal that may be in use."""
    with closing(open_reader(path)) as database:
        rows = database.execute(
            "SELECT decided.body FROM events AS measured JOIN events AS decided "
            "ON measured.decision = decided.decision AND decided.kind = 'decided' "
            "WHERE measured.kind = 'measured'"
        ).fetchall()
    return [task for (body,) in rows for task in json.loads(body)["tasks"]]


def until(users: list[LoadUser], over: threading.Event, seed: int) -> pd.DataFrame:
    """All that was asked until the kills are over."""
    parts = []
    while not over.is_set():
        parts.append(keep_asking(users, seconds=5.0, seed=seed))
    return pd.concat(parts, ignore_index=True)


def kill(system: LocalSystem, kills: int, rng: np.random.Generator) -> Counter[str]:
    """Kill processes that run, one after another, at random moments."""
    killed: Counter[str] = Counter()
    while killed.total() < kills:
        time.sleep(rng.uniform(1.0, 5.0))
        name = str(rng.choice(sorted(system.processes)))
        if system.processes[name].alive:
            os.kill(system.processes[name].pid, signal.SIGKILL)
            killed[name] += 1
            print(f"{killed.total()}: {name}", flush=True)
    return killed


def same_as_journal(path: Path) -> bool:
    """Whether the scheduler as it was at the end is what all its events make of a new one."""
    read = read_config(path.with_suffix(".yaml"), AgentConfig)
    with closing(open_device_of(read)) as device:
        anew = spec_of(read, device).make()
    with Journal(path) as journal:
        snapshot = journal.snapshot()
        for event in journal.events():
            replay(anew, event)
    kept = Scheduler.from_bytes(snapshot.scheduler, "snapshot")
    one, other = (metadata(pack("", {}, each.state())) for each in (anew, kept))
    return one == other  # digests included


def item(number: int) -> tuple[Item]:
    """Another photograph each time."""
    return (Item("image", np.roll(photograph("china", 60, 90), 3 * number, axis=1)),)


if __name__ == "__main__":
    raise SystemExit(main())
