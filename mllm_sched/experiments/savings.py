"""What a year costs: energy, money, carbon, under each scheduler and under each strategy.

The first is simulated, the second estimated.

Every device has schedulers of its own, one per encoder, and learns anew. A scheduler changes only
what the module draws while tasks run. What it draws between them stands in a column of its own:
at a few watts all year it is most of the bill.

Two intervals of 95 % are given. The inner one is a bootstrap over seeds, of the expected cost; a
single device scatters more. The wider one adds the error of the model of the board. That error is
taken as one factor on all schedulers (normal in its log), so percentages do not move. This is a
simplification: errors that differ between components would move them, and nothing published says
how far off the CPU is.

Of the strategies, times come from ``strategy_costs``. Watts and joules per bit are assumptions,
each with a default and a range; ``PLAUSIBLE`` says where they come from. A request is one item of
the mix and its answer. Devices and server wait for free; a server without batching is dear, one
that serves many at once is several times cheaper. The latency limit is about encoding, and does not
act here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.devices.calibration import held_out_errors
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.experiments.metrics import CONFIDENCE, RESAMPLES
from mllm_sched.experiments.savings_runs import Array, PlayedRuns, SavingsScenario
from mllm_sched.experiments.strategy_costs import ITEMS, Cost, EncodingPrice, Setting, modelled
from mllm_sched.pipeline.work import read_work

J_PER_KWH = 3.6e6
DAY_S = 86400.0
Z = 1.96  # of a normal, 95 %


@dataclass(frozen=True)
class FleetBill:
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


def fleet(scenario: SavingsScenario, played: PlayedRuns) -> FleetBill:
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
    return FleetBill(
        energy_kwh=scenario.devices * energy_j / J_PER_KWH,
        late_kwh=scenario.devices * late_j / J_PER_KWH,
        beyond=beyond / (scenario.tasks_per_day * scenario.days),
        busy=busy,
        idle_kwh=scenario.devices * idle_w * np.clip(period_s - busy_s, 0, None) / J_PER_KWH,
    )


def annual(scenario: SavingsScenario, played: PlayedRuns) -> pd.DataFrame:
    """The bill, one row a scheduler; see ``FleetBill`` for what is counted.

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


def saved(scenario: SavingsScenario, played: PlayedRuns, ours: str) -> pd.DataFrame:
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


def headline(scenario: SavingsScenario, played: PlayedRuns, ours: str, other: str) -> str:
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
    scenario: SavingsScenario, played: PlayedRuns, volumes: Sequence[float] = VOLUMES
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


def break_even(scenario: SavingsScenario, played: PlayedRuns, ours: str) -> pd.DataFrame:
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


def tornado(scenario: SavingsScenario, played: PlayedRuns, ours: str, other: str) -> pd.DataFrame:
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


def played_limits(played: PlayedRuns) -> pd.DataFrame:
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


STRATEGIES = {"All Edge": "all-edge", "All Remote": "all-remote", "Hybrid Edge": "hybrid"}
# The strategies' own items, and a 1080p image for the small CLIP, whose 49 patches are sent.
ENCODED = {
    item.encoder: item for item in (*ITEMS, EncodingPrice("clip-vit-b32", 1080 * 1920 * 3, 49, 768))
}


@dataclass(frozen=True)
class Power:
    """Assumed power of what the calibrated board does not cover.

    Attributes
    ----------
    edge_llm_w
        Of the edge module while it runs the LLM.
    server_w
        Of the server's GPU by its data sheet.
    server_share
        Of that, while it works on a request.
    pue
        What the data centre draws over what its servers draw.
    network_j_per_bit
        Of a bit on its way, both directions.
    """

    edge_llm_w: float = 40.0
    server_w: float = 300.0
    server_share: float = 0.7
    pue: float = 1.2
    network_j_per_bit: float = 1e-6

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 1.0 if each.name == "pue" else 0.0
            if not least <= value < math.inf:
                raise ValueError(f"{each.name}={value}: give a number, {least:g} or more")


# Assumed ranges. Edge: well above idle, at most the 60 W of MAXN. Server: the data sheet of an
# A100 80GB PCIe says 300 W; decoding leaves its arithmetic idle. PUE: a new hall to an old one.
# Network: 0.06 kWh/GB in 2015, fixed lines, halving every two years (Aslan et al., J. Ind. Ecol.
# 2018) is 2.7e-5 J/bit then and 1e-6 ten years later; what one more bit adds is less than either.
PLAUSIBLE = {
    "edge_llm_w": (25.0, 60.0),
    "server_w": (300.0, 300.0),
    "server_share": (0.4, 1.0),
    "pue": (1.05, 1.6),
    "network_j_per_bit": (1e-7, 2.7e-5),
}


def request_j(
    strategy: str, encoder: str, power: Power = Power(), setting: Setting = Setting()
) -> dict[str, float]:
    """Joules of one request by where they are spent: ``edge``, ``server`` and ``network``.

    Parameters
    ----------
    strategy
        ``all-edge``, ``all-remote`` or ``hybrid``.
    encoder
        Of its one item, among ``ENCODED``.
    setting
        Link, wire, LLM, and the component and power level of the board; its items do not count.

    Raises
    ------
    ValueError
        For an unknown strategy or encoder.
    """
    if encoder not in ENCODED:
        raise ValueError(f"encoder {encoder!r}: expected one of {', '.join(ENCODED)}")
    cost = modelled(strategy, replace(setting, items=[ENCODED[encoder]]))
    edge_j = 0.0 if strategy == "all-remote" else _encode_j(encoder, setting)
    if strategy == "all-edge":
        edge_j += power.edge_llm_w * cost.llm_s
    server_w = power.server_w * power.server_share * power.pue
    network_j = power.network_j_per_bit * 8 * (cost.up_bytes + cost.down_bytes)
    return {"edge": edge_j, "server": server_w * _server_s(cost), "network": network_j}


def _encode_j(encoder: str, setting: Setting) -> float:
    """Joules of the edge module while it encodes, by the calibrated board."""
    work = read_work()[encoder]
    return calibrated_model().energy_j(work, setting.component, setting.power_w)


def _server_s(cost: Cost) -> float:
    """Seconds for which the server works on a request."""
    return {
        "all-edge": 0.0,
        "all-remote": cost.encode_s + cost.llm_s,
        "hybrid": cost.llm_s,
    }[cost.strategy]


def strategy_annual(
    scenario: SavingsScenario, power: Power = Power(), setting: Setting = Setting()
) -> pd.DataFrame:
    """The bill, one row a strategy.

    Returns
    -------
    ``strategy``; ``edge_kwh``, ``server_kwh``, ``network_kwh`` and their sum ``energy_kwh``;
    ``low_kwh`` and ``high_kwh``, the least and the greatest sum within ``PLAUSIBLE``; ``money``
    and ``carbon_kg`` at the scenario's price and carbon intensity, wherever the energy is drawn.
    """
    least, most = (Power(**{key: ends[end] for key, ends in PLAUSIBLE.items()}) for end in (0, 1))
    rows = []
    for name, strategy in STRATEGIES.items():
        parts = _parts_kwh(scenario, strategy, power, setting)
        sums = [
            sum(_parts_kwh(scenario, strategy, other, setting).values())
            for other in (power, least, most)
        ]
        kwh = {f"{place}_kwh": value for place, value in parts.items()}
        named = dict(zip(("energy_kwh", "low_kwh", "high_kwh"), sums, strict=True))
        rows.append({"strategy": name, **kwh, **named})
    table = pd.DataFrame(rows)
    return table.assign(
        money=scenario.price_per_kwh * table["energy_kwh"],
        carbon_kg=scenario.gco2_per_kwh / 1000 * table["energy_kwh"],
    )


def _parts_kwh(
    scenario: SavingsScenario, strategy: str, power: Power, setting: Setting
) -> dict[str, float]:
    parts = {"edge": 0.0, "server": 0.0, "network": 0.0}
    for encoder in scenario.mix:
        requests = scenario.devices * scenario.tasks(encoder)
        for place, joules in request_j(strategy, encoder, power, setting).items():
            parts[place] += requests * joules / J_PER_KWH
    return parts
