"""What notebook 09 compares, and the numbers that the claim refers to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.study.lineup import ADAPTIVE, SAFE
from mllm_sched.study.many_users import Scenario
from mllm_sched.study.many_users_boards import nominal_means
from mllm_sched.study.many_users_sweep import play_all
from mllm_sched.study.metrics import highest, interval, lowest
from mllm_sched.study.runner import Rule

RULES = (SAFE, ADAPTIVE, Rule("UCB", "ucb"), Rule("Fixed at full power", "fixed"))
FRUGAL, SOON = "encoders short, least energy first", "encoders short, soonest first"
AHEAD, BLIND = "LLM short, looks ahead", "LLM short, does not"
QUEUES: dict[str, dict[str, Any]] = {
    "fair, the board refuses": {},
    "fair, the front refuses": {"front_refuses": True},
    "by deadline alone": {"fair": False},
}
COLUMNS = ["key", "value", "low", "high", "n", "evidence"]


def bottlenecks(base: Scenario) -> dict[str, Scenario]:
    """Two boards before ample LLM servers, and ample boards before one: each in two ways.

    The front takes the least energy or the soonest board; the LLM server begins only what it can
    still end in time, or everything.
    """
    encoders = replace(base, edges=2, llm_servers=32)
    llm = replace(base, edges=4, llm_servers=2, frugal_first=False)
    return {
        FRUGAL: encoders,
        SOON: replace(encoders, frugal_first=False),
        AHEAD: llm,
        BLIND: replace(llm, looks_ahead=False),
    }


def by_rule(base: Scenario) -> dict[str, Scenario]:
    """Two boards before ample LLM servers, under every rule of ``RULES``."""
    here = replace(base, edges=2, llm_servers=32, frugal_first=False)
    return {rule.label: replace(here, rule=rule) for rule in RULES}


def all_arms_s() -> float:
    """Seconds in which a board runs every arm once for each modality."""
    return float(sum(means.latency_s.sum() for means in nominal_means().values()))


def fairness_runs(base: Scenario, seeds: int, **spread: Any) -> pd.DataFrame:
    """One overloaded board: users alike or some of them heavy, by who orders and who refuses.

    Without a fair queue it goes by deadline alone. The runs of ``play_all``, by ``users`` and
    ``queue``. Users think for 2 s, so that each asks often enough to tell chance from favour.
    """
    board = replace(base, edges=1, llm_servers=8, think_s=2.0)
    people = {
        "80 alike": replace(board, users=80),
        "36 light, 4 heavy": replace(board, users=40, heavy_users=4),
    }
    cases = [
        ({"users": name, "queue": queue}, replace(scenario, **settings))
        for name, scenario in people.items()
        for queue, settings in QUEUES.items()
    ]
    return play_all(cases, seeds, label="fairness", **spread)


def claim_numbers(
    grid: pd.DataFrame, summaries: Iterable[pd.DataFrame], fairness: pd.DataFrame
) -> pd.DataFrame:
    """The numbers that the claim refers to, by ``key``.

    Parameters
    ----------
    grid
        Runs of ``grid``. Throughput per board is that of the most boards that still limit it,
        over that of one, both with the most users and LLM servers; paired by seed.
    summaries
        Summaries under the safe rule, of which the worst case counts.
    fairness
        Summary of ``fairness_runs``; those of the fair queue whose board refuses count, which is
        how the running system is built.
    """
    most = grid[["llm_servers", "users"]].max()
    full = grid[(grid["llm_servers"] == most["llm_servers"]) & (grid["users"] == most["users"])]
    wide = full.pivot(index="seed", columns="edges", values="answered_hz")
    edges = int(full.loc[full["limit"] == "encoders", "edges"].max())
    scaling = interval((wide[edges] / wide[1] / edges).to_numpy())
    beyond = pd.concat([_rows(table, "beyond") for table in summaries])
    jain = _rows(fairness[fairness["queue"] == next(iter(QUEUES))], "jain")
    rows = [
        ("throughput per edge device", *scaling, len(wide)),
        ("violations of the encoding limit, worst", *highest(beyond)),
        ("fairness between users, worst", *lowest(jain)),
    ]
    return pd.DataFrame([(*row, "simulated") for row in rows], columns=COLUMNS)


def _rows(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    names = {quantity: "value", f"{quantity}_low": "low", f"{quantity}_high": "high", "n": "n"}
    return table[list(names)].rename(columns=names).replace({np.inf: np.nan}).dropna()
