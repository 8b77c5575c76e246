"""When learning pays off, and which input moves a saving most. Simulated, as all of ``savings``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.study.savings import fleet, model_factor, saved
from mllm_sched.study.savings_curves import Played
from mllm_sched.study.savings_scenario import Scenario

CLAIMED = ("UCB", "Epsilon-greedy", "Fixed at full power")
VOLUMES = tuple(float(f"{volume:.3g}") for volume in np.geomspace(0.1, 10_000, 31))


def claim_numbers(savings: pd.DataFrame) -> pd.DataFrame:
    """The numbers that claims refer to: shares of a year's energy that are saved.

    Parameters
    ----------
    savings
        Of ``saved``.
    """
    rows = savings[savings["scheduler"].isin(CLAIMED)]
    names = {"share": "value", "share_low": "low", "share_high": "high"}
    table = rows[list(names)].rename(columns=names)
    table.insert(0, "key", "a year against " + rows["scheduler"].astype(str))
    return table.assign(n=savings["seeds"].iloc[0], evidence="simulated").reset_index(drop=True)


def over_volumes(
    scenario: Scenario, played: Played, volumes: Sequence[float] = VOLUMES
) -> pd.DataFrame:
    """Energy of every scheduler over the oracle's, by tasks a day of one device.

    With few tasks a device pays for learning alone; with many, for what it has learnt. All other
    values are the scenario's.

    Returns
    -------
    ``scheduler``, ``tasks_per_day``, ``over_oracle`` and ``learning``, the share of its energy
    that tasks cost more than late ones do.
    """
    oracle = played.schedulers.index("Oracle")
    tables = []
    for volume in volumes:
        sums = fleet(replace(scenario, tasks_per_day=volume), played)
        energy_kwh, late_kwh = sums.energy_kwh.mean(axis=1), sums.late_kwh.mean(axis=1)
        columns = {
            "scheduler": list(played.schedulers),
            "tasks_per_day": volume,
            "over_oracle": energy_kwh / energy_kwh[oracle],
            "learning": 1 - late_kwh / energy_kwh,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def break_even(scenario: Scenario, played: Played, ours: str) -> pd.DataFrame:
    """Where others come to take less than ``ours``, or cease to, as tasks become more.

    Returns
    -------
    One row per other ``scheduler``: ``few`` and ``many``, who takes less at the ends of
    ``VOLUMES``, and ``tasks_per_day`` of one device where that turns; NaN if it does not.
    """
    table = over_volumes(scenario, played)
    wide = table.pivot(index="tasks_per_day", columns="scheduler", values="over_oracle")
    rows = []
    for other in played.schedulers:
        if other != ours:
            ahead = wide[other] - wide[ours]  # above 0 ours takes less
            few, many = (ours if ahead.iloc[end] > 0 else other for end in (0, -1))
            rows.append((other, few, many, _turn(ahead) if few != many else math.nan))
    return pd.DataFrame(rows, columns=["scheduler", "few", "many", "tasks_per_day"])


def _turn(ahead: pd.Series) -> float:
    """Where a line last crosses zero, by interpolation on the log of its index."""
    values, volumes = ahead.to_numpy(), np.log(ahead.index.to_numpy(float))
    at = int(np.flatnonzero(np.sign(values[:-1]) != np.sign(values[1:]))[-1])
    part = values[at] / (values[at] - values[at + 1])
    return float(np.exp(volumes[at] + part * (volumes[at + 1] - volumes[at])))


def tornado(scenario: Scenario, played: Played, ours: str, other: str) -> pd.DataFrame:
    """Money that ``ours`` saves against ``other``, with one input changed at a time.

    Numbers are halved and doubled; the limit and the mix (one encoder alone) take each value that
    was played; the model's error takes the ends of its interval of 95 %.

    Returns
    -------
    ``input``; ``low`` and ``high``, the least and the greatest money; ``low_at`` and ``high_at``,
    the input there; ``base``, the money as it is. The greatest spread comes first.
    """

    def money(**changes: Any) -> float:
        table = saved(replace(scenario, **changes), played, ours).set_index("scheduler")
        return float(table.loc[other, "money"])

    base, tasks, off = money(), scenario.tasks_per_day, model_factor()
    cases = {
        "tasks per day": {
            f"{volume:g}": money(tasks_per_day=volume) for volume in (tasks / 2, 2 * tasks)
        },
        "devices": {f"{scenario.devices * by:g}": base * by for by in (0.5, 2)},
        "price per kWh": {f"{scenario.price_per_kwh * by:g}": base * by for by in (0.5, 2)},
        "latency limit": {
            f"{limit_s:g} s": money(limit_s=limit_s)
            for limit_s in played.limits_s
            if all(played.can(encoder, limit_s) for encoder in scenario.mix)
        },
        "mix of tasks": {
            f"{encoder} alone": money(mix={encoder: 1.0})
            for encoder in played.encoders
            if played.can(encoder, scenario.limit_s)
        },
        "error of the model": {"too high": base / off, "too low": base * off},
    }
    rows = [(name, *_ends(values), base) for name, values in cases.items()]
    table = pd.DataFrame(rows, columns=["input", "low", "high", "low_at", "high_at", "base"])
    order = (table["high"] - table["low"]).sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _ends(values: dict[str, float]) -> tuple[float, float, str, str]:
    """Least and greatest value, and what each is at."""
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return values[low], values[high], low, high


def played_limits(played: Played) -> pd.DataFrame:
    """What each limit allows: ``encoder``, ``limit_s``, ``arms_within``, ``trusted_beyond``.

    Where no arm meets the limit nobody was played, and ``arms_within`` is 0.
    """
    rows = []
    for encoder in played.encoders:
        for limit_s in played.limits_s:
            if played.can(encoder, limit_s):
                curves = played.curves(encoder, limit_s)
                rows.append((encoder, limit_s, curves.arms_within, curves.trusted_beyond))
            else:
                rows.append((encoder, limit_s, 0, "all"))
    return pd.DataFrame(rows, columns=["encoder", "limit_s", "arms_within", "trusted_beyond"])
