"""What a year of encoding costs under each scheduler: energy, money, carbon. All simulated.

Every device has schedulers of its own, one per encoder, and learns anew. A scheduler changes only
what the module draws while tasks run. What it draws between them stands in a column of its own:
at a few watts all year it is most of the bill.

Two intervals of 95 % are given. The inner one is a bootstrap over seeds, of the expected cost; a
single device scatters more. The wider one adds the error of the model of the board. That error is
taken as one factor on all schedulers (normal in its log), so percentages do not move. This is a
simplification: errors that differ between components would move them, and nothing published says
how far off the CPU is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from mllm_sched.devices.calibration import held_out_errors
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.study.metrics import CONFIDENCE, RESAMPLES
from mllm_sched.study.savings_curves import Array, Played
from mllm_sched.study.savings_scenario import Scenario

J_PER_KWH = 3.6e6
DAY_S = 86400.0
Z = 1.96  # of a normal, 95 %


@dataclass(frozen=True)
class Fleet:
    """What all devices take over the period; arrays are (schedulers, seeds).

    Attributes
    ----------
    energy_kwh
        While tasks run.
    late_kwh
        The part that is left if all tasks cost what late ones do; the rest is learning.
    beyond
        Share of tasks truly beyond the limit.
    busy
        Share of the period in which a device runs tasks; above 1 it cannot keep up.
    idle_kwh
        Between tasks, at the power levels chosen in the end.
    """

    energy_kwh: Array
    late_kwh: Array
    beyond: Array
    busy: Array
    idle_kwh: Array


def fleet(scenario: Scenario, played: Played) -> Fleet:
    """Sums over encoders and devices; a seed stands for one way in which a fleet may learn.

    Raises
    ------
    ValueError
        If the limit or an encoder was not played, no arm meets the limit, or a device would have
        to work more than all day.
    """
    energy_j, late_j, beyond, busy_s, idle_w = np.zeros((5, len(played.schedulers), played.seeds))
    for encoder, share in scenario.mix.items():
        curves, tasks = played.curves(encoder, scenario.limit_s), scenario.tasks(encoder)
        energy_j += curves.energy_j.after(tasks)
        late_j += tasks * curves.energy_j.late
        beyond += curves.beyond.after(tasks)
        busy_s += curves.busy_s.after(tasks)
        idle_w += share * curves.idle_w
    period_s = scenario.days * DAY_S
    busy = busy_s / period_s
    if busy.mean(axis=1).min() > 1:
        raise ValueError(
            f"tasks_per_day={scenario.tasks_per_day:g}: whoever schedules, a device would be busy "
            f"{24 * busy.mean(axis=1).min():.3g} h a day; give fewer tasks, and more devices"
        )
    return Fleet(
        energy_kwh=scenario.devices * energy_j / J_PER_KWH,
        late_kwh=scenario.devices * late_j / J_PER_KWH,
        beyond=beyond / (scenario.tasks_per_day * scenario.days),
        busy=busy,
        idle_kwh=scenario.devices * idle_w * np.clip(period_s - busy_s, 0, None) / J_PER_KWH,
    )


def annual(scenario: Scenario, played: Played) -> pd.DataFrame:
    """The bill, one row a scheduler; see ``Fleet`` for what is counted.

    Returns
    -------
    ``scheduler``; ``energy_kwh``, ``money`` and ``carbon_kg``, each with ``_low``, ``_high``
    (seeds alone) and ``_wide_low``, ``_wide_high`` (with the model's error); ``learning_kwh``,
    ``beyond`` with its interval, ``busy`` and ``idle_kwh``.
    """
    sums = fleet(scenario, played)
    columns: dict[str, Array] = {}
    units = {"money": scenario.price_per_kwh, "carbon_kg": scenario.gco2_per_kwh / 1000}
    for name, per_kwh in {"energy_kwh": 1.0, **units}.items():
        columns |= _named(name, sums.energy_kwh * per_kwh, wide=True)
    columns["learning_kwh"] = (sums.energy_kwh - sums.late_kwh).mean(axis=1)
    columns |= _named("beyond", sums.beyond)
    columns |= {"busy": sums.busy.mean(axis=1), "idle_kwh": sums.idle_kwh.mean(axis=1)}
    return pd.DataFrame({"scheduler": list(played.schedulers), **columns})


def saved(scenario: Scenario, played: Played, ours: str) -> pd.DataFrame:
    """What one scheduler saves against each other, paired by seed; below 0 it takes more.

    Returns
    -------
    One row per other ``scheduler``: ``share`` of the other's energy with ``_low`` and ``_high``;
    ``energy_kwh``, ``money`` and ``carbon_kg`` with these and the wide interval; ``always_on_kwh``,
    the saving if the module stays on between tasks at the power level it last had; and how many
    ``seeds`` are behind it.
    """
    if ours not in played.schedulers:
        raise ValueError(f"scheduler {ours!r}: played were {', '.join(played.schedulers)}")
    sums, place = fleet(scenario, played), played.schedulers.index(ours)
    less_kwh = np.delete(sums.energy_kwh - sums.energy_kwh[place], place, axis=0)
    theirs_kwh = np.delete(sums.energy_kwh, place, axis=0)
    whole_kwh = sums.energy_kwh + sums.idle_kwh
    units = {"money": scenario.price_per_kwh, "carbon_kg": scenario.gco2_per_kwh / 1000}
    columns = _named("share", less_kwh / theirs_kwh)
    for name, per_kwh in {"energy_kwh": 1.0, **units}.items():
        columns |= _named(name, less_kwh * per_kwh, wide=True)
    always_on = np.delete((whole_kwh - whole_kwh[place]).mean(axis=1), place)
    others = [name for name in played.schedulers if name != ours]
    table = pd.DataFrame({"scheduler": others, **columns, "always_on_kwh": always_on})
    return table.assign(seeds=played.seeds)


def _named(name: str, values: Array, wide: bool = False) -> dict[str, Array]:
    """Mean over seeds, and its intervals, as columns; independent errors add in quadrature."""
    mean, tail = values.mean(axis=1), 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values @ _resamples(values.shape[1]), [tail, 100 - tail], axis=1)
    columns = {name: mean, f"{name}_low": low, f"{name}_high": high}
    if wide:
        off = model_factor()
        down, up = np.sort([mean / off, mean * off], axis=0)
        columns[f"{name}_wide_low"] = mean - np.hypot(mean - low, mean - down)
        columns[f"{name}_wide_high"] = mean + np.hypot(high - mean, up - mean)
    return columns


@lru_cache(maxsize=8)
def _resamples(seeds: int) -> Array:
    """Weights of the seeds in every resample, the same for all schedulers; (seeds, resamples)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).T / seeds


@lru_cache(maxsize=1)
def model_sd() -> float:
    """Standard deviation of the log of the model's energy, from its errors on held-out rows.

    The mean absolute error of a normal is sqrt(2 / pi) of its standard deviation. Schedulers end
    up on the DLA, whose energy is that of the GPU over a ratio; the errors of the two add up as
    independent ones.
    """
    errors = held_out_errors(calibrated_model())
    scaled = [
        np.average(rows["mean"], weights=rows["rows"]) * math.sqrt(math.pi / 2)
        for rows in (
            errors[errors["quantity"] == "marginal_energy_j"],
            errors[errors["quantity"] == "perf_per_watt_ratio"],
        )
    ]
    return float(np.hypot(*scaled))


def model_factor() -> float:
    """The factor by which the model is off at either end of its interval of 95 %."""
    return math.exp(Z * model_sd())


def headline(scenario: Scenario, played: Played, ours: str, other: str) -> str:
    """The saving in one sentence; money is called euro."""
    table = saved(scenario, played, ours).set_index("scheduler")
    if other not in table.index:
        raise ValueError(f"scheduler {other!r}: expected one of {', '.join(table.index)}")
    row = table.loc[other]
    word = "less" if row["energy_kwh"] >= 0 else "more"
    kwh, money, carbon = (abs(row[name]) for name in ("energy_kwh", "money", "carbon_kg"))
    period = "a year" if scenario.days == 365 else f"in {scenario.days:g} days"
    devices = "this device" if scenario.devices == 1 else f"these {scenario.devices:g} devices"
    return (
        f"{ours} takes {kwh:.3g} kWh {word} {period} than {other} on {devices} (simulated): "
        f"{money:.3g} euro, {carbon:.3g} kg CO2e."
    )
