"""What a decision costs beside its task: ask, tell and journal, and a task of 100 ms, in one run.

    python benchmarks/decision_overhead.py [--tasks 60] [--folder FOLDER]

Between ask and tell the processor multiplies matrices for 100 ms, for what runs once in a while is
slower than what runs all the time. How much is a matter of the machine: the last line shows it with
calls of NumPy that need next to no memory. Every task makes two commits, one of the decision and
one of the measurement. The aim is 1 % of the task. *ms* are by the clock, ask and tell together;
*CPU ms* is the processor time of the thread, which neither other processes nor the disk make
longer. Latency and power of the arms are those of the simulated board.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from mllm_sched import Task, open_device
from mllm_sched.arms import Arm
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.learner import Learner, SchedulerSpec

RULES = ("safe-gp-ucb", "adaptive-safe-gp")
TASK_S, AIM = 0.1, 0.01
TASK = Task("image", "clip-vit-b32")


def work(seconds: float, matrix: np.ndarray) -> float:
    """Keep the processor and its caches busy for that long; the seconds that it took."""
    began_s = time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        matrix @ matrix
    return took_s


def cost(learner: Learner, run: Callable[[Arm], dict], task_s: float) -> np.ndarray:
    """Seconds of ask and tell, by the clock and of the processor, and of the task between them."""
    began = now()
    decision = learner.ask(["ada/1/0"])
    asked, values = now() - began, run(decision.arm)
    worked_s = work(task_s, MATRIX) if task_s else 0.0
    facts = {"modality": TASK.modality, "encoder": TASK.encoder, "evidence": "simulated"}
    began = now()
    learner.tell(decision.id, facts=facts, **values)
    return np.append(asked + now() - began, worked_s)


def now() -> np.ndarray:
    """Seconds by the clock, and of the processor in this thread."""
    return np.array([time.perf_counter(), time.thread_time()])


MATRIX = np.random.default_rng(0).standard_normal((256, 256))


def measure(rule: str, durability: str, folder: Path, before: int, tasks: int) -> bool:
    """Print one line: what a decision costs after so many tasks; whether it is within the aim."""
    device = open_device("agx-orin-sim", seed=0)
    seeds = [arm for arm in device.space if arm.power_w == 60 and arm.load == 1.0]

    def run(arm: Arm) -> dict:
        measured = device.run(arm, TASK)
        return {"latency_s": measured.latency_s, "energy_j": measured.energy_j}

    limit_s = 2.0 * min(device.expected(arm, TASK).latency_s for arm in seeds)
    spec = SchedulerSpec(rule, device.space, {"latency_s": limit_s}, seeds)
    path = folder / f"{rule}-{durability}-{before}.db"
    with Journal(path, durability=durability) as journal:
        learner = Learner(journal, spec)
        for _ in range(before):
            cost(learner, run, 0.0)
        costs = np.array([cost(learner, run, TASK_S) for _ in range(tasks)])
    share, cpu_share = costs[:, :2].sum(axis=0) / costs[:, 2].sum()
    median_ms, high_ms = 1e3 * np.quantile(costs[:, 0], [0.5, 0.95])
    mean_ms, cpu_ms, task_ms = 1e3 * costs.mean(axis=0)
    print(
        f"{rule:<17} {durability:<8} {before:>6} {median_ms:>9.2f} {high_ms:>8.2f} {mean_ms:>8.2f} "
        f"{task_ms:>8.1f} {share:>7.2%} {cpu_ms:>7.2f} {cpu_share:>9.2%}"
        f"{'' if share <= AIM else '  above the aim'}",
        flush=True,
    )
    return bool(share <= AIM)


def small_calls() -> float:
    """Seconds of 140 calls of NumPy on six numbers."""
    began_s, few = time.perf_counter(), np.arange(6.0)
    for _ in range(20):
        few = np.exp(-np.abs(few)) + np.where(few > 0, few, -few)
    return time.perf_counter() - began_s


def after_reading_the_clock(seconds: float) -> float:
    """Seconds of the same after the processor did nothing but read the clock for a while."""
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        pass
    return small_calls()


def slower_once_in_a_while(rounds: int = 50) -> str:
    """How much slower small calls are after a pause than at once, on this machine."""
    both = [[after_reading_the_clock(wait_s) for wait_s in (TASK_S, 0.0)] for _ in range(rounds)]
    later_ms, at_once_ms = 1e3 * np.median(both, axis=0)
    return (
        f"140 calls of NumPy: {at_once_ms:.2f} ms at once, {later_ms:.2f} ms after {TASK_S:g} s in "
        f"which the processor only read the clock, {later_ms / at_once_ms:.1f} times as much"
    )


def main() -> int:
    """Print a line for every rule, durability and number of tasks before.

    1 if a decision that outlives its process costs more than the aim after 1000 tasks. The first
    tasks of the adaptive rule cost more, since it learns its kernel; to outlive a power cut, every
    commit waits for the disk.
    """
    parser = argparse.ArgumentParser(description="The cost of a decision beside a task of 100 ms.")
    parser.add_argument("--tasks", type=int, default=60, help="measured for each line")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; default: temporary")
    given = parser.parse_args()
    print(
        f"{'rule':<17} {'survives':<8} {'after':>6} {'median ms':>9} {'95 % ms':>8} {'mean ms':>8} "
        f"{'task ms':>8} {'share':>7} {'CPU ms':>7} {'CPU share':>9}"
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        within = {
            case: measure(*case[:2], Path(folder), case[2], given.tasks)
            for case in product(RULES, ("process", "power"), (0, 1000))
        }
    print(slower_once_in_a_while())
    return int(not all(within[rule, "process", 1000] for rule in RULES))


if __name__ == "__main__":
    raise SystemExit(main())
