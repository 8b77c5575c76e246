"""Many scenarios over seeds: one row each, and means with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.study.fairness import jain_index, max_min_share
from mllm_sched.study.many_users import ANSWERED, LATE, PLACES, SHED, Played, Scenario, costs
from mllm_sched.study.many_users_boards import MODALITIES, nominal_means
from mllm_sched.study.many_users_system import play
from mllm_sched.study.metrics import interval
from mllm_sched.study.spread import spread

TASKS = 400  # that are asked in a scenario of ``lasting``, unless that is too short
SHORTEST_S = 7.0
BASE = Scenario()
QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}


def measures(played: Played) -> dict[str, float]:
    """What is said of one run, over the tasks that ended after the warm-up.

    Returns
    -------
    ``asked_hz`` and ``answered_hz`` (per second); ``answered``, ``late``, ``shed`` and every reason
    of ``SHED`` (shares of the tasks that ended); ``beyond``, the share of encoded tasks whose arm
    was truly beyond the limit; ``p50_s``, ``p95_s``, ``p99_s`` of the time to the end of an
    answer; ``energy_j``, all that encoders took over the answers in time; ``encoders_busy`` and
    ``llm_busy`` (shares of time); ``jain``, see ``fairness``; ``light_answered`` and
    ``heavy_answered``, shares of the tasks of light and heavy users (NaN if there are none).
    """
    scenario, tasks = played.scenario, played.counted
    ended, seconds = len(tasks), scenario.horizon_s
    shares = tasks["outcome"].value_counts() / max(ended, 1)
    answered = tasks[tasks["outcome"] == ANSWERED]
    encoded = tasks[tasks["encode_s"].notna()]
    took_s = answered["ended_s"] - answered["arrived_s"]
    reasons = {name: float(shares.get(name, 0.0)) for name in (ANSWERED, LATE, *SHED)}
    return {
        "asked_hz": ended / seconds,
        "answered_hz": len(answered) / seconds,
        **reasons,
        "shed": sum(reasons[name] for name in SHED),
        "beyond": float((encoded["true_s"] > scenario.limit_s).mean()),
        **{name: float(took_s.quantile(q)) for name, q in QUANTILES.items()},
        "energy_j": float(encoded["energy_j"].sum()) / len(answered) if len(answered) else np.nan,
        "encoders_busy": float(encoded["encode_s"].sum()) / (scenario.edges * seconds),
        "llm_busy": float(tasks["llm_s"].sum()) / (scenario.llm_servers * PLACES * seconds),
        "jain": fairness(played),
        "light_answered": _answered(tasks[tasks["user"] >= scenario.heavy_users]),
        "heavy_answered": _answered(tasks[tasks["user"] < scenario.heavy_users]),
    }


def _answered(tasks: pd.DataFrame) -> float:
    return float((tasks["outcome"] == ANSWERED).mean())


def fairness(played: Played) -> float:
    """Jain's index of answers over a max-min fair split of as many; who asked nothing is left out.

    For users who all ask alike it is that of their answers. A user who asks for less than others
    is not wronged by getting less.
    """
    tasks = played.counted
    asked = tasks.groupby("user").size()
    got = tasks[tasks["outcome"] == ANSWERED].groupby("user").size().reindex(asked.index).fillna(0)
    return jain_index(got / np.maximum(max_min_share(asked, got.sum()), 1e-12))


def play_all(
    cases: Sequence[tuple[Mapping[str, Any], Scenario]],
    seeds: int,
    *,
    first_seed: int = 0,
    label: str = "",
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Play every scenario with every seed, spread as all sweeps here.

    Parameters
    ----------
    cases
        Scenarios, each with what names it.

    Returns
    -------
    One row a run: what names its case, ``seed``, and ``measures``.
    """
    jobs = [
        (facts, replace(scenario, seed=seed))
        for facts, scenario in cases
        for seed in range(first_seed, first_seed + seeds)
    ]
    return pd.DataFrame(spread(_job, jobs, label=label, n_jobs=n_jobs))


def _job(facts: Mapping[str, Any], scenario: Scenario) -> dict[str, Any]:
    return {**facts, "seed": scenario.seed, **measures(play(scenario))}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, each with its bootstrap interval of 95 %: ``_low``, ``_high``; and ``n``.

    Parameters
    ----------
    runs
        Of ``play_all``.
    """
    names, rows = list(runs.columns[: runs.columns.get_loc("seed")]), []
    for key, group in runs.groupby(names, sort=False, dropna=False):
        row: dict[str, Any] = {**dict(zip(names, key, strict=True)), "n": len(group)}
        for name in runs.columns[len(names) + 1 :]:
            values = group[name].dropna().to_numpy()
            bounds = interval(values) if len(values) else (np.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def lasting(scenario: Scenario) -> Scenario:
    """With a horizon in which its users ask some ``TASKS`` times, after half as long a warm-up.

    At least ``SHORTEST_S`` each: with 10,000 users that is more tasks.
    """
    loops = sum(scenario.asks_at_once)
    horizon_s = max(SHORTEST_S, TASKS * scenario.think_s / loops)
    return replace(scenario, horizon_s=horizon_s, warm_up_s=max(SHORTEST_S, horizon_s / 2))


def capacity_hz(scenario: Scenario) -> dict[str, float]:
    """Tasks per second that encoders and LLM servers can do at most, and that users ask at most.

    Encoders run the least-energy arm within the limit of a board like the calibrated one; users
    get every answer as quickly as if alone.
    """
    behind, encode_s, llm_s, alone_s = costs(scenario.mbit_s), 0.0, 0.0, 0.0
    for name, share in zip(MODALITIES, scenario.shares, strict=True):
        means = nominal_means()[name]
        within = np.where(means.latency_s <= scenario.limit_s, means.energy_j, np.inf)
        encode_s += share * float(means.latency_s[within.argmin()])
        llm_s += share * behind.llm_s[name]
        alone_s += share * behind.link_s[name]
    alone_s += encode_s + llm_s
    return {
        "users": sum(scenario.asks_at_once) / (scenario.think_s + alone_s),
        "encoders": scenario.edges / encode_s,
        "LLM servers": scenario.llm_servers * PLACES / llm_s,
    }


def grid(
    users: Iterable[int],
    edges: Iterable[int],
    llm_servers: Iterable[int],
    seeds: int,
    *,
    base: Scenario = BASE,
    **spread: Any,
) -> pd.DataFrame:
    """Users by edges by LLM servers: the runs of ``play_all``, with what should limit them.

    ``least_hz`` is the least of ``capacity_hz``, and ``limit`` says whose it is.
    """
    cases = []
    for servers, boards, people in product(llm_servers, edges, users):
        mine: dict[str, Any] = {"llm_servers": servers, "edges": boards, "users": people}
        scenario = lasting(replace(base, **mine))
        capacity = capacity_hz(scenario)
        limit = min(capacity, key=capacity.__getitem__)
        cases.append(({**mine, "limit": limit, "least_hz": capacity[limit]}, scenario))
    return play_all(cases, seeds, label="grid", **spread)


def loaded(base: Scenario, load: float) -> Scenario:
    """As many users as ask for ``load`` times what encoders and LLM servers can do at most."""
    one = capacity_hz(replace(base, users=1, heavy_users=0))
    least_hz = min(one["encoders"], one["LLM servers"])
    return replace(base, users=max(1, round(load * least_hz / one["users"])))


def over_load(
    bases: Mapping[str, Scenario], loads: Sequence[float], seeds: int, **spread: Any
) -> pd.DataFrame:
    """Every case under every load: the runs of ``play_all``, by ``case``, ``load``, ``users``."""
    cases = []
    for (name, base), load in product(bases.items(), loads):
        scenario = loaded(base, load)
        cases.append(({"case": name, "load": load, "users": scenario.users}, scenario))
    return play_all(cases, seeds, label="load", **spread)


def first_beyond(
    table: pd.DataFrame, quantities: Sequence[str], allowed: float = 0.01
) -> pd.DataFrame:
    """The least load at which the mean of a quantity is above ``allowed``; NaN if at none.

    Parameters
    ----------
    table
        Of ``over_load``, summarised.
    """
    above = {name: table["load"].where(table[name] > allowed) for name in quantities}
    return pd.DataFrame(above).groupby(table["case"], sort=False).min().reset_index()
