"""What the experience of other boards is worth to one that joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.schedulers import Scheduler
from mllm_sched.study.many_users_boards import MODALITIES, Board, Fleet, experience, scheduler_for
from mllm_sched.study.metrics import interval
from mllm_sched.study.runner import Rule
from mllm_sched.study.spread import spread

COLD, TOLD, TRUSTING = "cold", "warm, told the scatter", "warm, as if the same board"
STARTS = (COLD, TOLD, TRUSTING)
SHARES = (0.6, 0.25, 0.15)  # of the modalities


def joins(
    rule: Rule,
    scatters: Sequence[float],
    *,
    first: int,
    seeds: int,
    first_seed: int = 0,
    siblings: int = 4,
    before: int = 100,
    limit_s: float = 0.2,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """A board joins siblings that have worked for a while: its first tasks, cold and warm.

    Parameters
    ----------
    rule
        Scheduler of all boards.
    scatters
        How far boards lie apart; see ``Fleet``. Nobody stands in a warm room.
    first
        Tasks of the board that count.
    seeds, first_seed
        Runs, each with boards of its own; the starts of a run meet the same board and noise.
    siblings, before
        How many there are, and how many tasks each has done, from a cold start.
    limit_s
        On the latency of encoding.
    n_jobs
        See ``spread``.

    Returns
    -------
    One row a scatter and start: ``energy_over_oracle`` and ``beyond`` (share of tasks whose arm is
    truly beyond the limit), with ``_low`` and ``_high``, and ``n``.
    """
    jobs = [
        (rule, scatter, seed, siblings, before, first, limit_s)
        for scatter in scatters
        for seed in range(first_seed, first_seed + seeds)
    ]
    rows = pd.DataFrame(
        [row for part in spread(_job, jobs, label="sharing", n_jobs=n_jobs) for row in part]
    )
    table = []
    for (scatter, start), group in rows.groupby(["scatter", "start"], sort=False):
        row: dict[str, Any] = {"scatter": scatter, "start": start, "n": len(group)}
        for name in ("energy_over_oracle", "beyond"):
            value, low, high = interval(group[name].to_numpy())
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _job(
    rule: Rule, scatter: float, seed: int, siblings: int, before: int, first: int, limit_s: float
) -> list[dict[str, Any]]:
    fleet = Fleet(scatter, warm_share=0.0)
    others = [Board(number, seed, fleet) for number in range(1, siblings + 1)]
    for number, board in enumerate(others, 1):
        encode(board, scheduler_for(board, rule, limit_s, [seed, 2, number]), before, seed)
    table = experience(others)
    rows = []
    for start in STARTS:
        newcomer = Board(0, seed, fleet)
        scheduler = scheduler_for(newcomer, rule, limit_s, [seed, 2, 0])
        if start != COLD:
            scheduler.warm_start(table, scatter=scatter if start == TOLD else 0.0)
        done = encode(newcomer, scheduler, first, seed)
        best_j = sum(newcomer.least_energy_j(name, limit_s) for name in done["modality"])
        rows.append(
            {
                "scatter": scatter,
                "start": start,
                "energy_over_oracle": done["energy_j"].sum() / best_j,
                "beyond": float((done["true_s"] > limit_s).mean()),
            }
        )
    return rows


def encode(board: Board, scheduler: Scheduler, tasks: int, seed: int) -> pd.DataFrame:
    """Some tasks one after the other: ``modality``, ``energy_j``, ``true_s``; a row each."""
    rng, now_s, rows = np.random.default_rng([seed, 4]), 0.0, []
    for name in rng.choice(MODALITIES, size=tasks, p=SHARES):
        decision = scheduler.ask(context={"modality": str(name)})
        run = board.run(decision.arm, str(name), now_s)
        scheduler.tell(decision.id, latency_s=run.latency_s, energy_j=run.energy_j)
        now_s += run.latency_s
        rows.append((str(name), run.energy_j, run.true_latency_s))
    return pd.DataFrame(rows, columns=["modality", "energy_j", "true_s"])
