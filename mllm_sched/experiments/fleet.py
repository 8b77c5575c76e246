"""Simulated boards that resemble each other, and what the measurements of one are worth to another.

All are the calibrated AGX Orin. Every component of a board has a factor of its own on latency and
energy, and some boards stand in a warm room. How far boards lie apart is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm, Factor
from mllm_sched.devices.base import Expected
from mllm_sched.devices.disturbances import Throttling
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.comparison import SAFE, full_power_arms
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import Scheduler, make_scheduler
from mllm_sched.tasks import Task

# Which encoder stands for a modality (those that notebook 01 prices), and its share of the tasks.
TASKS = {
    "image": Task("image", "clip-vit-l14-336"),
    "audio": Task("audio", "whisper-small"),
    "video": Task("video", "videomae-base"),
}
MODALITIES = tuple(TASKS)
SHARES = (0.6, 0.25, 0.15)
CONTEXT = Factor("modality", MODALITIES)


@dataclass(frozen=True)
class Fleet:
    """How boards differ."""

    scatter: float = 0.1  # SD of the log of a component's factor; 0.1 means some 10 % (assumed)
    warm_share: float = 0.2  # of boards that stand in a warm room
    warm_room_c: float = 35.0  # the other boards are cooled well enough never to throttle


@dataclass(frozen=True, slots=True)
class Run:
    """One task on a board: as measured, and the true mean latency of its arm at that moment."""

    latency_s: float
    energy_j: float
    true_latency_s: float


class Board:
    """A simulated AGX Orin with factors of its own, drawn by its number and the seed."""

    def __init__(self, number: int, seed: int, fleet: Fleet = Fleet()) -> None:
        orin = _orin()
        self.space = orin.space
        self.rng = np.random.default_rng([seed, 1, number])
        self.noise = orin.noise
        components = self.space.factor("component").levels
        drawn = np.exp(fleet.scatter * self.rng.standard_normal(len(components)))
        by_arm = drawn[orin.space.features()[:, 0].astype(int)]  # codes of the components
        self.means = {
            name: Expected(means.latency_s * by_arm, means.energy_j * by_arm)
            for name, means in nominal_means().items()
        }
        warm = self.rng.random() < fleet.warm_share
        self.heat = Throttling(ambient_c=fleet.warm_room_c) if warm else None
        self.temperature_c = fleet.warm_room_c
        self.rows: list[tuple[object, ...]] = []  # what was measured here
        self._idle_since_s = 0.0
        self._idle_w = calibrated_model().idle_power_w(float(self.space[0].power_w))

    def run(self, arm: Arm, modality: str, now_s: float) -> Run:
        """Encode one item, and keep the measurement in ``rows``."""
        means, slower = self.means[modality], self._slowdown(now_s)
        latency_factor, energy_factor = self.noise.draw(self.rng)
        true_s = float(means.latency_s[arm.index]) * slower
        done = Run(
            true_s * latency_factor,
            float(means.energy_j[arm.index]) * slower * energy_factor,
            true_s,
        )
        if self.heat:
            power_w = done.energy_j / done.latency_s
            self.temperature_c = self.heat.warmed(self.temperature_c, power_w, done.latency_s)
            self._idle_since_s = now_s + done.latency_s
            self._idle_w = calibrated_model().idle_power_w(float(arm.power_w))
        self.rows.append((modality, *arm.levels.values(), done.latency_s, done.energy_j))
        return done

    def least_energy_j(self, modality: str, limit_s: float) -> float:
        """True energy of the best arm within the limit on a cool board."""
        means = self.means[modality]
        within = means.energy_j[means.latency_s <= limit_s]
        return float(within.min()) if len(within) else float("nan")

    def _slowdown(self, now_s: float) -> float:
        """Cool down since the last task; how much slower the board is then."""
        if not self.heat:
            return 1.0
        idle_s = max(now_s - self._idle_since_s, 0.0)
        self.temperature_c = self.heat.warmed(self.temperature_c, self._idle_w, idle_s)
        return self.heat.slowdown(self.temperature_c)


def scheduler_for(board: Board, rule: Rule, limit_s: float, rng: Sequence[int]) -> Scheduler:
    """The scheduler of a board: every modality a context; GPU and DLA at full power are trusted."""
    return make_scheduler(
        rule.name,
        board.space,
        limits={"latency_s": limit_s},
        seeds=full_power_arms(board.space),
        rng=np.random.default_rng(rng),
        contexts=[CONTEXT],
        **rule.settings,
    )


@lru_cache(maxsize=1)
def _orin() -> SimulatedOrin:
    return SimulatedOrin()


@lru_cache(maxsize=1)
def nominal_means() -> dict[str, Expected]:
    """True means of all arms of the calibrated board, by modality."""
    return {name: _orin().expected_all(task) for name, task in TASKS.items()}


# -- A board joins others

SIBLINGS, BEFORE = 4, 100  # boards that are there already, and the tasks that each has done
COLD, TOLD, TRUSTING = "cold", "warm, told the scatter", "warm, as if the same board"


def join(scatter: float, seed: int, first: int, limit_s: float) -> list[dict[str, Any]]:
    """A board joins siblings that have worked for a while; all run safe GP-UCB.

    Every start meets the same board, tasks and noise; no board stands in a warm room. ``first``
    tasks of the new board count; ``scatter`` is that of ``Fleet``. One row a start, with
    ``energy_over_oracle`` (of the board's best arm) and ``beyond`` (share of tasks whose arm is
    truly beyond the limit).
    """
    fleet = Fleet(scatter, warm_share=0.0)
    siblings = [Board(number, seed, fleet) for number in range(1, SIBLINGS + 1)]
    for number, board in enumerate(siblings, 1):
        _encode(board, scheduler_for(board, SAFE, limit_s, [seed, 2, number]), BEFORE, seed)
    columns = ["modality", *_orin().space.names, "latency_s", "energy_j"]
    table = pd.DataFrame([row for each in siblings for row in each.rows], columns=columns)
    rows = []
    for start in (COLD, TOLD, TRUSTING):
        board = Board(0, seed, fleet)
        scheduler = scheduler_for(board, SAFE, limit_s, [seed, 2, 0])
        if start != COLD:
            scheduler.warm_start(table, scatter=scatter if start == TOLD else 0.0)
        done = _encode(board, scheduler, first, seed)
        best_j = sum(board.least_energy_j(name, limit_s) for name in done["modality"])
        rows.append(
            {
                "scatter": scatter,
                "start": start,
                "energy_over_oracle": done["energy_j"].sum() / best_j,
                "beyond": float((done["true_s"] > limit_s).mean()),
            }
        )
    return rows


def _encode(board: Board, scheduler: Scheduler, tasks: int, seed: int) -> pd.DataFrame:
    """Some tasks one after the other: ``modality``, ``energy_j``, ``true_s``; a row each."""
    rng, now_s, rows = np.random.default_rng([seed, 4]), 0.0, []
    for name in rng.choice(MODALITIES, size=tasks, p=SHARES):
        decision = scheduler.ask(context={"modality": str(name)})
        run = board.run(decision.arm, str(name), now_s)
        scheduler.tell(decision.id, latency_s=run.latency_s, energy_j=run.energy_j)
        now_s += run.latency_s
        rows.append((str(name), run.energy_j, run.true_latency_s))
    return pd.DataFrame(rows, columns=["modality", "energy_j", "true_s"])
