"""Journals for tests: an agent's life in short."""

import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from mllm_sched import ArmSpace, Factor
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.schedulers.persistence import metadata, pack

SPACE = ArmSpace([Factor("component", ["gpu", "cpu"]), Factor("power_w", [15, 30, 60], log=True)])
FACTS = {"modality": "image", "encoder": "small", "evidence": "simulated", "user": "ada"}


def spec(name="safe-gp-ucb", **changed):
    given = {"limits": {"latency_s": 0.2}, "seeds": [SPACE[2], SPACE[5]], "rng": 3, **changed}
    return SchedulerSpec(name, SPACE, **given)


def alike(one, other):
    """Whether two states of a scheduler are the same to the last bit."""
    return metadata(pack("", {}, one)) == metadata(pack("", {}, other))


def taken(arm, number=0):
    """What an arm takes: the same numbers for the same task."""
    spread = np.random.default_rng([arm.index, number]).uniform(0.9, 1.1, 2)
    latency_s = (0.08 if arm.component == "gpu" else 0.15) * (30 / arm.power_w) ** 0.5
    return {"latency_s": latency_s * spread[0], "energy_j": arm.power_w * latency_s * spread[1]}


def work(learner, tasks, first=0):
    """Measure some tasks, one after the other."""
    for number in range(first, first + tasks):
        decision = learner.ask([f"ada/{number}/0"])
        learner.tell(decision.id, facts=FACTS, **taken(decision.arm, number))


class Clocks:
    """In the place of the module ``time``: a wall clock that is set, and seconds that pass."""

    def __init__(self):
        self.wall_s, self.even_s = 1e9, 50.0

    def time(self):
        return self.wall_s

    def monotonic(self):
        return self.even_s

    def sleep(self, seconds):
        self.wall_s += seconds
        self.even_s += seconds


@contextmanager
def learning(path, made=None, **given):
    """A scheduler on the journal there."""
    with Journal(path, **given) as journal:
        yield Learner(journal, made or spec())


def rebuilt(journal, made=None):
    """State of the scheduler that the journal makes."""
    return Learner(journal, made or spec()).scheduler.state()


def as_after_a_crash(path: Path, folder: Path) -> Path:
    """The files as they would be found if their process ended now."""
    folder.mkdir()
    for end in ("", "-wal"):
        if (file := path.with_name(f"{path.name}{end}")).exists():
            shutil.copy(file, folder / file.name)
    return folder / path.name


@contextmanager
def small_disk(folder: Path):
    """A file system of a megabyte there; False where nobody may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    try:
        yield bool(mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill(ballast: Path):
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
