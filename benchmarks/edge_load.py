"""Many users on one machine, more than it can serve: who is answered, how fast, how fairly.

    python benchmarks/edge_load.py [--users 64] [--seconds 120] [--deadline 4] [--heavy 4]

A front, two agents on this machine with a real CLIP tower, and an LLM server. Every user asks one
task after another with a short pause; heavy users ask several at a time. Prints answered, shed and
late shares, percentiles, violations of the limit on encoding, Jain's index over the users, and the
memory of all processes. Fails if memory grows, if Jain's index over equal users is below 0.9, if
heavy users get more than a fifth above what others get, if there was no overload to shed, or if
anything happens but answers, refusals and, for one in fifty, a late answer.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from mllm_sched.edge.load import LoadUser, keep_asking
from mllm_sched.edge.system import LocalSystem
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item

MODEL, LIMIT_S, PAUSE_S = "llava-clip-b32", 0.3, 0.25
AGENTS = ("edge-1", "edge-2")
FLAT = 0.05  # of the memory, by which the last third may be above the second
FAIR, AT_ONCE = 0.9, 4
MOST, LATE = 1.2, 0.02  # of heavy users over others; share of tasks that are late


def main() -> int:
    """Print what happened; 1 if it should not have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--heavy", type=int, default=4, help="of them, who ask several at a time")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--warm-up",
        type=float,
        default=60.0,
        metavar="S",
        help="before that, until arms are learned and allocators hold what they need",
    )
    parser.add_argument("--deadline", type=float, default=4.0, metavar="S")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, memory = run(Path(folder), options)
    return report(table, memory, options)


def run(folder: Path, options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All tasks, and the memory of all processes over time."""
    agents = {
        name: {"device": "host", "scheduler": {"limit_s": LIMIT_S}, "queue": {"batch": 4}}
        for name in AGENTS
    }
    names = [f"user-{number:02}" for number in range(options.users)]
    limits = {name: {"rate_hz": 100, "burst": 100, "at_once": 16} for name in names}
    with LocalSystem(folder, agents, model=MODEL, front=True, users=limits) as system:
        users = [
            LoadUser(name, system.client(name), item, options.deadline)
            for place, name in enumerate(names)
            for _ in range(AT_ONCE if place < options.heavy else 1)
        ]
        keep_asking(users, seconds=options.warm_up, pause_s=pause)
        seen: list[dict[str, float]] = []
        over = threading.Event()
        watching = threading.Thread(target=watch, args=(system, seen, over))
        watching.start()
        table = keep_asking(users, seconds=options.seconds, pause_s=pause)
        over.set()
        watching.join()
    return table, pd.DataFrame(seen)


def pause(rng: np.random.Generator) -> float:
    """Of a user between two tasks."""
    return float(rng.exponential(PAUSE_S))


def watch(system: LocalSystem, seen: list[dict[str, float]], over: threading.Event) -> None:
    """Memory of every process with those it started, in MB, each two seconds."""
    roots = {name: psutil.Process(one.pid) for name, one in system.processes.items()}
    while not over.wait(2.0):
        families = {name: [root, *root.children(recursive=True)] for name, root in roots.items()}
        seen.append({name: rss_mb(family) for name, family in families.items()})


def every_s(seen: pd.DataFrame, seconds: float) -> bool:
    """Whether somebody looked until the end: a process that died ends the looking."""
    return len(seen) >= seconds / 2 / 1.5


def rss_mb(processes: Sequence[psutil.Process]) -> float:
    """Resident memory of some processes together."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def report(table: pd.DataFrame, memory: pd.DataFrame, options: argparse.Namespace) -> int:
    """Print it, and say whether it is as it should be."""
    answered = table[table["outcome"] == "answered"]
    shares = table["outcome"].value_counts(normalize=True)
    percentiles = np.percentile(answered["total_s"], [50, 95, 99])
    per_user = answered["user"].value_counts().reindex(sorted(table["user"].unique()), fill_value=0)
    heavy, equal = per_user.iloc[: options.heavy], per_user.iloc[options.heavy :]
    third = len(memory) // 3
    growth = memory.tail(third).median() / memory.iloc[third : 2 * third].median() - 1
    print(f"{options.users} users, {options.heavy} of them heavy, {options.seconds:g} s")
    print(f"  tasks: {len(table)}, {len(answered) / options.seconds:.1f} answered a second")
    print("  " + ", ".join(f"{what} {share:.1%}" for what, share in shares.items()))
    print("  answered in p50 {:.2f}, p95 {:.2f}, p99 {:.2f} s".format(*percentiles))
    print(
        f"  encoding above its limit of {LIMIT_S} s: {(answered['latency_s'] > LIMIT_S).mean():.1%}"
    )
    print(f"  Jain over equal users {jain(equal):.3f}, over all {jain(per_user):.3f}")
    print(f"  heavy users got {heavy.mean() / equal.mean():.2f} times the share of others")
    print(f"  memory, MB: {memory.tail(third).median().round().to_dict()}")
    print(f"  growth over the last two thirds: {growth.map('{:+.1%}'.format).to_dict()}")
    print(table.loc[table["outcome"] == "failed", "why"].value_counts().head(5).to_string())
    wrong = {
        "tasks failed": shares.get("failed", 0.0) > 0,
        "too many were late": shares.get("late", 0.0) > LATE,
        "nothing was shed": shares.get("shed", 0.0) == 0,
        "unfair": jain(equal) < FAIR or heavy.mean() > MOST * equal.mean(),
        "memory grows": not (growth < FLAT).all(),
        "a process died": not every_s(memory, options.seconds),
    }
    print("  wrong: " + (", ".join(what for what, so in wrong.items() if so) or "nothing"))
    return int(any(wrong.values()))


def jain(shares: pd.Series) -> float:
    """Jain's index of fairness: 1 if all shares are equal, 1/n if one has everything."""
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def item(number: int) -> tuple[Item]:
    """Another photograph each time."""
    return (Item("image", np.roll(photograph("china", 224, 224), 3 * number, axis=1)),)


if __name__ == "__main__":
    raise SystemExit(main())
