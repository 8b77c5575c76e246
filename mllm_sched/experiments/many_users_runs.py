"""What notebook 09 compares: many scenarios of ``many_users`` over seeds, and means with intervals.

``joins`` is what the measurements of other boards are worth to one that joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mllm_sched.experiments.fleet import (
    MODALITIES,
    Board,
    Fleet,
    experience,
    nominal_means,
    scheduler_for,
)
from mllm_sched.experiments.lineup import ADAPTIVE, SAFE
from mllm_sched.experiments.many_users import (
    ANSWERED,
    LATE,
    PLACES,
    SHED,
    FleetRun,
    FleetScenario,
    costs,
    play,
)
from mllm_sched.experiments.metrics import highest, lowest, mean_interval
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import Scheduler


def jain_index(shares: ArrayLike) -> float:
    """Jain's index: 1 if all have the same, 1/n if one of n has everything; NaN for nobody.

    Jain, Chiu and Hawe, DEC-TR-301 (1984).

    Examples
    --------
    >>> jain_index([2, 2, 2]), jain_index([6, 0, 0])
    (1.0, 0.3333333333333333)
    """
    values = np.asarray(shares, dtype=np.float64)
    squares = float(len(values) * (values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else float("nan")


def max_min_share(wanted: ArrayLike, total: float) -> NDArray[np.float64]:
    """The max-min fair split: nobody gets more than wanted, what is left goes to the others evenly.

    Parameters
    ----------
    wanted
        By each user, 0 or more.
    total
        What there is to share; if there is enough, all get what they want.

    Examples
    --------
    >>> max_min_share([1, 5, 20], total=12).tolist()
    [1.0, 5.0, 6.0]
    """
    demand = np.asarray(wanted, dtype=np.float64)
    order = np.argsort(demand, kind="stable")
    given, left = np.zeros(len(demand)), float(total)
    for place, user in enumerate(order):
        given[user] = min(float(demand[user]), left / (len(order) - place))
        left -= given[user]
    return given


TASKS = 400  # that are asked in a scenario of ``lasting``, unless that is too short
SHORTEST_S = 7.0
BASE = FleetScenario()
QUANTILES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}


def measures(played: FleetRun) -> dict[str, float]:
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


def fairness(played: FleetRun) -> float:
    """Jain's index of answers over a max-min fair split of as many; who asked nothing is left out.

    For users who all ask alike it is that of their answers. A user who asks for less than others
    is not wronged by getting less.
    """
    tasks = played.counted
    asked = tasks.groupby("user").size()
    got = tasks[tasks["outcome"] == ANSWERED].groupby("user").size().reindex(asked.index).fillna(0)
    return jain_index(got / np.maximum(max_min_share(asked, got.sum()), 1e-12))


def play_all(
    cases: Sequence[tuple[Mapping[str, Any], FleetScenario]],
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


def _job(facts: Mapping[str, Any], scenario: FleetScenario) -> dict[str, Any]:
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
            bounds = mean_interval(values) if len(values) else (np.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def lasting(scenario: FleetScenario) -> FleetScenario:
    """With a horizon in which its users ask some ``TASKS`` times, after half as long a warm-up.

    At least ``SHORTEST_S`` each: with 10,000 users that is more tasks.
    """
    loops = sum(scenario.asks_at_once)
    horizon_s = max(SHORTEST_S, TASKS * scenario.think_s / loops)
    return replace(scenario, horizon_s=horizon_s, warm_up_s=max(SHORTEST_S, horizon_s / 2))


def capacity_hz(scenario: FleetScenario) -> dict[str, float]:
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
    base: FleetScenario = BASE,
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


def loaded(base: FleetScenario, load: float) -> FleetScenario:
    """As many users as ask for ``load`` times what encoders and LLM servers can do at most."""
    one = capacity_hz(replace(base, users=1, heavy_users=0))
    least_hz = min(one["encoders"], one["LLM servers"])
    return replace(base, users=max(1, round(load * least_hz / one["users"])))


def over_load(
    bases: Mapping[str, FleetScenario], loads: Sequence[float], seeds: int, **spread: Any
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


RULES = (SAFE, ADAPTIVE, Rule("UCB", "ucb"), Rule("Fixed at full power", "fixed"))
FRUGAL, SOON = "encoders short, least energy first", "encoders short, soonest first"
AHEAD, BLIND = "LLM short, looks ahead", "LLM short, does not"
QUEUES: dict[str, dict[str, Any]] = {
    "fair, the board refuses": {},
    "fair, the front refuses": {"front_refuses": True},
    "by deadline alone": {"fair": False},
}
COLUMNS = ["key", "value", "low", "high", "n", "evidence"]


def bottlenecks(base: FleetScenario) -> dict[str, FleetScenario]:
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


def by_rule(base: FleetScenario) -> dict[str, FleetScenario]:
    """Two boards before ample LLM servers, under every rule of ``RULES``."""
    here = replace(base, edges=2, llm_servers=32, frugal_first=False)
    return {rule.label: replace(here, rule=rule) for rule in RULES}


def all_arms_s() -> float:
    """Seconds in which a board runs every arm once for each modality."""
    return float(sum(means.latency_s.sum() for means in nominal_means().values()))


def fairness_runs(base: FleetScenario, seeds: int, **spread: Any) -> pd.DataFrame:
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
    scaling = mean_interval((wide[edges] / wide[1] / edges).to_numpy())
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
        [row for part in spread(_join, jobs, label="sharing", n_jobs=n_jobs) for row in part]
    )
    table = []
    for (scatter, start), group in rows.groupby(["scatter", "start"], sort=False):
        row: dict[str, Any] = {"scatter": scatter, "start": start, "n": len(group)}
        for name in ("energy_over_oracle", "beyond"):
            value, low, high = mean_interval(group[name].to_numpy())
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _join(
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
