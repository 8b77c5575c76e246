"""`kill -9` of agent, server and front at random under load: what is lost, what comes twice.

    python benchmarks/edge_kill.py [--kills 30] [--users 8] [--seed 0]

A front, two agents on this machine and an LLM server, kept up by a keeper. Users ask without a
pause. Fails if a task that was answered has no measurement in any journal, if a task has two
answers, if an answer is short, if a scheduler's state is not what its journal says, or if the
system does not answer everybody afterwards.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from mllm_sched.edge.config import AgentConfig, read_config
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.keeper import Keeper
from mllm_sched.edge.load import User, keep_asking
from mllm_sched.edge.replay import play
from mllm_sched.edge.run_agent import open_runtime_of, spec_of
from mllm_sched.edge.system import LocalSystem
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.small_models import END
from mllm_sched.schedulers import Scheduler
from mllm_sched.schedulers.saving import unpacked

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
        found = run(Path(folder), options.kills, options.users, options.seed)
    for what, count in found.items():
        print(f"  {what}: {count}")
    wrong = ("answered, not in a journal", "answered twice", "short", "states that differ")
    return int(any(found[name] for name in wrong) or found["not answered afterwards"] > 0)


def run(folder: Path, kills: int, count: int, seed: int) -> Counter[str]:
    """Load, kills, and what is found afterwards."""
    agents = {name: {"device": "host", "scheduler": {"limit_s": 0.5}} for name in AGENTS}
    names = {f"user-{number}": {"rate_hz": 1000, "burst": 1000} for number in range(count)}
    with LocalSystem(folder, agents, front=True, users=names) as system:
        users = [User(name, system.client(name), item, DEADLINE_S, NEW_TOKENS) for name in names]
        over = threading.Event()
        tables: list[pd.DataFrame] = []
        with Keeper(system.processes) as keeper:
            asking = threading.Thread(target=lambda: tables.append(until(users, over, seed)))
            asking.start()
            killed = kill(system, kills, np.random.default_rng(seed))
            over.set()
            asking.join()
            begun_s = time.monotonic()
            after = keep_asking(users, tasks=2)
            back_s = time.monotonic() - begun_s
            restarts = sum(keeper.restarts.values())
    (table,) = tables
    found = Counter({f"killed: {name}": number for name, number in killed.items()})
    found |= Counter({"restarts": restarts})
    found |= Counter({f"tasks {what}": n for what, n in table["outcome"].value_counts().items()})
    print(f"{len(table)} tasks; two more of each user afterwards took {back_s:.1f} s")
    print(table.loc[table["outcome"] == "failed", "why"].value_counts().head(5).to_string())
    table = pd.concat([table, after], ignore_index=True)
    journals = [system.journal(name) for name in AGENTS]
    found["not answered afterwards"] = int((after["outcome"] != "answered").sum())
    found["answers that began anew"] = int((table["tries"] > 1).sum())
    return found + judged(table, journals)


def until(users: list[User], over: threading.Event, seed: int) -> pd.DataFrame:
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


def judged(table: pd.DataFrame, journals: list[Path]) -> Counter[str]:
    """What must not be: lost measurements, double answers, short ones, states that differ."""
    answered = table[table["outcome"] == "answered"]
    measured, states = set[str](), 0
    for path in journals:
        with Journal(path) as journal:
            tasks = {}
            for event in journal.events():
                if event.kind == "decided":
                    tasks[event.decision] = event.body["tasks"]
                elif event.kind == "measured":
                    measured |= set(tasks[event.decision])
            states += not same_as_journal(journal, path.with_suffix(".yaml"))
    keys = answered["user"] + "/" + answered["id"] + "/0"
    whole = answered["tokens"].map(lambda some: len(some) == NEW_TOKENS or some[-1] == END)
    return Counter(
        {
            "answered, not in a journal": int((~keys.isin(measured)).sum()),
            "answered twice": int(answered["id"].duplicated().sum()),
            "short": int((~whole).sum()),
            "states that differ": states,
        }
    )


def same_as_journal(journal: Journal, config: Path) -> bool:
    """Whether the scheduler as it was at the end is what all its events make of a new one."""
    snapshot = journal.snapshot()
    assert snapshot, "the agent ended without a snapshot"
    last: Scheduler = unpacked(snapshot.scheduler, "snapshot", Scheduler)
    read = read_config(config, AgentConfig)
    with closing(open_runtime_of(read)) as runtime:
        anew = spec_of(read, runtime).make()
    for event in journal.events():
        play(anew, event)
    return bool(str(anew.state()) == str(last.state()))


def item(number: int) -> tuple[Item]:
    """Another photograph each time."""
    return (Item("image", np.roll(photograph("china", 60, 90), 3 * number, axis=1)),)


if __name__ == "__main__":
    raise SystemExit(main())
