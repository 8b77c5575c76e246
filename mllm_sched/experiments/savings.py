"""What a year costs: energy, money and carbon, under each scheduler and under each strategy.

Schedulers are simulated. Every device has one for each encoder, which learns anew: its first tasks
cost what the played run says, all later ones what the second half of that run took on average.
Energy is that of the module while tasks run; idle energy has a column of its own.

The inner 95 % interval is a bootstrap over seeds, of the expected cost. The wider one adds the
error of the model of the board, as one log-normal factor on all schedulers.

Strategies are estimated: times by ``strategy_costs``, watts and joules per bit assumed. A request
is one item of the mix and its answer; the server serves one request at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from mllm_sched import paths
from mllm_sched.arms import ArmSpace
from mllm_sched.devices import KnownDevice
from mllm_sched.devices.calibration import held_out_errors
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.comparison import fitted_lineup, full_power_arms
from mllm_sched.experiments.metrics import CONFIDENCE, RESAMPLES
from mllm_sched.experiments.plots import PENALTY, scheduler_colour, titled
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.experiments.strategy_costs import ITEMS, EncodingPrice, Setting, modelled
from mllm_sched.pipeline.work import encoder_modalities, read_work
from mllm_sched.tasks import Task

Array = NDArray[np.float64]
DEFAULT_MIX = {"clip-vit-l14-336": 6, "whisper-small": 3, "videomae-base": 1}
J_PER_KWH = 3.6e6
DAY_S = 86400.0


@dataclass(frozen=True)
class SavingsScenario:
    """Who encodes how much, where; ValueError names a value outside of its range."""

    tasks_per_day: float = 10_000  # of one device
    devices: int = 100
    price_per_kwh: float = 0.30  # of electricity, in any currency; the examples say euro
    gco2_per_kwh: float = 300.0  # carbon intensity
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))  # sums to 1 then
    limit_s: float = 0.2  # latency limit of encoding; it must be one that was played
    days: float = 365.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("tasks_per_day", "limit_s", "days") and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: give a number above 0")
            if name in ("price_per_kwh", "gco2_per_kwh") and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: give a number, 0 or more")
        if not 1 <= self.devices < math.inf or self.devices != int(self.devices):
            raise ValueError(f"devices={self.devices}: give a whole number, 1 or more")
        known = encoder_modalities()
        for encoder, share in self.mix.items():
            if encoder not in known:
                raise ValueError(f"mix: encoder {encoder!r}: expected some of {', '.join(known)}")
            if not 0 <= share < math.inf:
                raise ValueError(f"mix: {encoder}={share}: give a share, 0 or more")
        total = sum(self.mix.values())
        if not total:
            raise ValueError(f"mix: shares sum to {total:g}: give at least one a number above 0")
        shares = {encoder: share / total for encoder, share in self.mix.items() if share > 0}
        object.__setattr__(self, "mix", shares)

    def tasks(self, encoder: str) -> float:
        """Tasks of an encoder on one device in the whole period."""
        return self.tasks_per_day * self.days * self.mix.get(encoder, 0.0)


# -- Runs of every scheduler

ENCODERS = ("clip-vit-l14-336", "whisper-small", "videomae-base", "clip-vit-b32")
LIMITS_S = (0.05, 0.1, 0.2, 0.5, 1.0)
RUNS = Path("10_savings") / "runs.csv"  # under the folder of results
NOBODY = "nobody"  # in the place of a scheduler, where no arm meets the limit
NO_ARM = "no arm"  # of the trusted ones violates the limit
SUMS = ["energy_j", "beyond", "busy_s"]
COUNTS = 15  # of tasks, at which the sums over a run's first tasks are kept
RUN = ["scheduler", "seed"]


def play(
    encoders: Sequence[str] = ENCODERS,
    limits_s: Sequence[float] = LIMITS_S,
    *,
    steps: int = 500,
    seeds: int = 5,
    first_seed: int = 0,
    rules: Callable[[KnownDevice, Task], list[Rule]] = fitted_lineup,
    board: Mapping[str, Any] | None = None,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Play every encoder under every limit on the simulated board.

    ``seeds`` counts runs of each scheduler; ``board`` are further arguments of the board.

    One row a run: ``encoder``, ``limit_s``, ``arms_within`` the limit, ``trusted_beyond`` (the
    trusted components that are not), ``scheduler``, ``seed``, ``late_energy_j``, ``late_beyond``,
    ``late_busy_s`` (means per task of the second half), ``late_idle_w`` (idle power of the module
    at the power levels chosen then), and ``energy_j@n``, ``beyond@n``, ``busy_s@n`` (sums over the
    first n tasks). Where no arm meets the limit nobody plays, and one row says so.
    """
    known, settings, tables = encoder_modalities(), dict(board or {}), []
    for encoder in encoders:
        task, device = Task(known[encoder], encoder), SimulatedOrin(**settings)
        latency_s, trusted = device.expected_all(task).latency_s, full_power_arms(device.space)
        for limit_s in limits_s:
            beyond = [str(arm.component) for arm in trusted if latency_s[arm.index] > limit_s]
            facts = {
                "encoder": encoder,
                "limit_s": limit_s,
                "arms_within": int((latency_s <= limit_s).sum()),
                "trusted_beyond": ", ".join(beyond) or NO_ARM,
            }
            if not facts["arms_within"]:
                tables.append(pd.DataFrame([{**facts, "scheduler": NOBODY, "seed": 0}]))
                continue
            table = sweep(
                *(rules(device, task), device.name, task, steps),
                range(first_seed, first_seed + seeds),
                limits={"latency_s": limit_s},
                trusted=trusted,
                device_settings=settings,
                n_jobs=n_jobs,
                label=f"{encoder}, {limit_s:g} s",
            )
            runs = _compact(table, limit_s, device.space)
            tables.append(pd.DataFrame(facts, index=runs.index).join(runs))
    return pd.concat(tables, ignore_index=True)


def _compact(table: pd.DataFrame, limit_s: float, space: ArmSpace) -> pd.DataFrame:
    # One row a run; sums are kept at counts that are dense at first, where most is learnt.
    model = calibrated_model()
    idle_w = np.array([model.idle_power_w(float(arm.power_w)) for arm in space])
    table = table.assign(
        beyond=(table["true_latency_s"] > limit_s).astype(float),
        busy_s=table["latency_s"],
        idle_w=idle_w[table["arm"].to_numpy()],
    )
    steps = int(table["step"].max()) + 1
    late = table[table["step"] >= steps // 2].groupby(RUN, observed=True)
    means = late[[*SUMS, "idle_w"]].mean().add_prefix("late_")
    sums = table[[*RUN, "step"]].join(table.groupby(RUN, observed=True)[SUMS].cumsum())
    counts = {round(count) for count in np.geomspace(1, steps, COUNTS)}
    kept = sums[sums["step"].isin([count - 1 for count in counts])]
    wide = kept.pivot(index=RUN, columns="step", values=SUMS).loc[means.index]
    wide.columns = pd.Index([f"{name}@{step + 1}" for name, step in wide.columns])
    runs = means.join(wide).reset_index()
    return runs.assign(scheduler=runs["scheduler"].astype(str))


def read_runs(path: Path | None = None) -> pd.DataFrame:
    """The table that notebook 10 wrote; FileNotFoundError says how to make it."""
    path = path or paths.RESULTS / RUNS
    if not path.exists():
        raise FileNotFoundError(
            f"no table of runs ({path.name}): run `make reproduce NOTEBOOKS=10_savings`"
        )
    return pd.read_csv(path)


@dataclass(frozen=True)
class Curves:
    """Runs of all schedulers with one encoder under one limit; quantities are those of ``SUMS``."""

    counts: Array  # tasks at which the sums are known, from 0; (points,)
    sums: Mapping[str, Array]  # of a quantity over the first tasks; (schedulers, seeds, points)
    late: Mapping[str, Array]  # what every task after the last count adds; (schedulers, seeds)
    idle_w: Array  # of the module between tasks, at the power levels chosen in the end
    trusted_beyond: str  # trusted components that violate the limit; empty if none does

    def after(self, quantity: str, tasks: float) -> Array:
        """The sum over so many tasks, linear between counts; shape (schedulers, seeds)."""
        counts, sums = self.counts, self.sums[quantity]
        if tasks >= counts[-1]:
            return sums[..., -1] + (tasks - counts[-1]) * self.late[quantity]
        right = int(np.searchsorted(counts, tasks, side="right"))
        part = (tasks - counts[right - 1]) / (counts[right] - counts[right - 1])
        return (1 - part) * sums[..., right - 1] + part * sums[..., right]


class PlayedRuns:
    """A table of ``play``, ready for questions; ``seeds`` counts runs of each scheduler."""

    def __init__(self, runs: pd.DataFrame) -> None:
        done = runs[runs["scheduler"] != NOBODY]
        self.encoders = tuple(dict.fromkeys(runs["encoder"]))
        self.limits_s = tuple(sorted(map(float, runs["limit_s"].unique())))
        self.schedulers = tuple(dict.fromkeys(done["scheduler"]))
        self.seeds = int(done["seed"].nunique())
        self._curves = {
            (str(encoder), float(limit_s)): self._read(group)
            for (encoder, limit_s), group in done.groupby(["encoder", "limit_s"], sort=False)
        }

    def curves(self, encoder: str, limit_s: float) -> Curves:
        """What was played of an encoder under a limit; ValueError says what to choose instead."""
        asked = ("encoder", encoder, self.encoders), ("limit_s", limit_s, self.limits_s)
        for name, value, known in asked:
            if value not in known:
                raise ValueError(f"{name}={value}: played were {', '.join(map(str, known))}")
        if not self.can(encoder, limit_s):
            raise ValueError(
                f"{encoder}: no arm encodes within {limit_s:g} s (simulated); "
                "choose a longer limit, or leave this encoder out of the mix"
            )
        return self._curves[encoder, limit_s]

    def can(self, encoder: str, limit_s: float) -> bool:
        """Whether some arm meets the limit."""
        return (encoder, limit_s) in self._curves

    def _read(self, group: pd.DataFrame) -> Curves:
        order = pd.Categorical(group["scheduler"], self.schedulers)
        group = group.assign(scheduler=order).sort_values(["scheduler", "seed"])
        shape = (len(self.schedulers), self.seeds)
        counts = [name.split("@")[1] for name in group if name.startswith(f"{SUMS[0]}@")]
        columns = {name: [f"{name}@{count}" for count in counts] for name in SUMS}
        sums = {name: group[columns[name]].to_numpy(float).reshape(*shape, -1) for name in SUMS}
        late = {name: group[f"late_{name}"].to_numpy(float).reshape(shape) for name in SUMS}
        beyond = str(group["trusted_beyond"].iloc[0])
        return Curves(
            counts=np.array([0.0, *map(float, counts)]),
            sums={name: np.insert(values, 0, 0.0, axis=-1) for name, values in sums.items()},
            late=late,
            idle_w=group["late_idle_w"].to_numpy(float).reshape(shape),
            trusted_beyond="" if beyond == NO_ARM else beyond,
        )


# -- The bill of the schedulers


@dataclass(frozen=True)
class FleetBill:
    """What all devices take over the period; arrays are (schedulers, seeds)."""

    energy_kwh: Array  # while tasks run
    late_kwh: Array  # the same if all tasks cost what late ones do; the rest is learning
    beyond: Array  # share of tasks truly beyond the limit
    busy: Array  # share of the period in which a device runs tasks; above 1 it cannot keep up
    idle_kwh: Array  # between tasks, at the power levels chosen in the end


def fleet(scenario: SavingsScenario, played: PlayedRuns) -> FleetBill:
    """Sums over encoders and devices; a seed is one way in which a fleet may learn.

    Raises ValueError if the limit or an encoder was not played, no arm meets the limit, or a device
    would have to work more than all day.
    """
    energy_j, late_j, beyond, busy_s, idle_w = np.zeros((5, len(played.schedulers), played.seeds))
    for encoder, share in scenario.mix.items():
        curves, tasks = played.curves(encoder, scenario.limit_s), scenario.tasks(encoder)
        energy_j += curves.after("energy_j", tasks)
        late_j += tasks * curves.late["energy_j"]
        beyond += curves.after("beyond", tasks)
        busy_s += curves.after("busy_s", tasks)
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

    ``scheduler``; ``energy_kwh``, ``money`` and ``carbon_kg``, each with ``_low``, ``_high`` (seeds
    alone) and ``_wide_low``, ``_wide_high`` (with the model's error); ``learning_kwh``, ``beyond``
    with its interval, ``busy`` and ``idle_kwh``.
    """
    sums = fleet(scenario, played)
    columns = _in_units(scenario, sums.energy_kwh)
    columns["learning_kwh"] = (sums.energy_kwh - sums.late_kwh).mean(axis=1)
    columns |= _with_intervals("beyond", sums.beyond)
    columns |= {"busy": sums.busy.mean(axis=1), "idle_kwh": sums.idle_kwh.mean(axis=1)}
    return pd.DataFrame({"scheduler": list(played.schedulers), **columns})


def saved(scenario: SavingsScenario, played: PlayedRuns, ours: str) -> pd.DataFrame:
    """What one scheduler saves against each other, paired by seed; below 0 it takes more.

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
    always_on = np.delete((whole_kwh - whole_kwh[place]).mean(axis=1), place)
    others = [name for name in played.schedulers if name != ours]
    columns = _with_intervals("share", less_kwh / theirs_kwh) | _in_units(scenario, less_kwh)
    table = pd.DataFrame({"scheduler": others, **columns, "always_on_kwh": always_on})
    return table.assign(seeds=played.seeds)


def _in_units(scenario: SavingsScenario, kwh: Array) -> dict[str, Array]:
    # Energy, money and carbon with both intervals; independent errors add in quadrature.
    columns: dict[str, Array] = {}
    units = {"money": scenario.price_per_kwh, "carbon_kg": scenario.gco2_per_kwh / 1000}
    for name, per_kwh in {"energy_kwh": 1.0, **units}.items():
        columns |= _with_intervals(name, kwh * per_kwh)
        mean, low, high = (columns[f"{name}{end}"] for end in ("", "_low", "_high"))
        down, up = np.sort([mean / model_factor(), mean * model_factor()], axis=0)
        columns[f"{name}_wide_low"] = mean - np.hypot(mean - low, mean - down)
        columns[f"{name}_wide_high"] = mean + np.hypot(high - mean, up - mean)
    return columns


def _with_intervals(name: str, values: Array) -> dict[str, Array]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values @ _resamples(values.shape[1]), [tail, 100 - tail], axis=1)
    return {name: values.mean(axis=1), f"{name}_low": low, f"{name}_high": high}


@lru_cache(maxsize=8)
def _resamples(seeds: int) -> Array:
    """Weights of the seeds in every resample, shape (seeds, resamples)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES).T / seeds


@lru_cache(maxsize=1)
def model_factor() -> float:
    """The factor by which the model's energy is off at either end of its 95 % interval.

    From its errors on held-out rows; the mean absolute error of a normal is sqrt(2 / pi) of its SD.
    The DLA's energy is the GPU's over a ratio; the errors of the two count as independent.
    """
    errors = held_out_errors(calibrated_model())
    sds = []
    for quantity in ("marginal_energy_j", "perf_per_watt_ratio"):
        rows = errors[errors["quantity"] == quantity]
        sds.append(np.average(rows["mean"], weights=rows["rows"]) * math.sqrt(math.pi / 2))
    return math.exp(1.96 * float(np.hypot(*sds)))


def headline(scenario: SavingsScenario, played: PlayedRuns, ours: str, other: str) -> str:
    """The saving in one sentence; money is called euro."""
    row = saved(scenario, played, ours).set_index("scheduler").loc[other]
    word = "less" if row["energy_kwh"] >= 0 else "more"
    kwh, money, carbon = (abs(row[name]) for name in ("energy_kwh", "money", "carbon_kg"))
    period = "a year" if scenario.days == 365 else f"in {scenario.days:g} days"
    devices = "this device" if scenario.devices == 1 else f"these {scenario.devices:g} devices"
    return (
        f"{ours} takes {kwh:.3g} kWh {word} {period} than {other} on {devices} (simulated): "
        f"{money:.3g} euro, {carbon:.3g} kg CO2e."
    )


def claim_numbers(savings: pd.DataFrame) -> pd.DataFrame:
    """The numbers that claims refer to: shares of a year's energy that are saved, of ``saved``."""
    claimed = savings["scheduler"].isin(["UCB", "Epsilon-greedy", "Fixed at full power"])
    rows = savings[claimed].reset_index(drop=True)
    keys = "a year against " + rows["scheduler"].astype(str)
    columns = {"share": "value", "share_low": "low", "share_high": "high", "seeds": "n"}
    numbers = rows[list(columns)].rename(columns=columns).assign(evidence="simulated")
    numbers.insert(0, "key", keys)
    return numbers


def short(value: float) -> str:
    """Three digits, without a power of ten.

    >>> short(1234.5), short(0.04567)
    ('1230', '0.0457')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if abs(rounded) >= 100 else f"{rounded:.6g}"


def bill_figure(bill: pd.DataFrame) -> Axes:
    """Energy of every scheduler of ``annual`` with both intervals, the least on top."""
    ax = plt.subplots(figsize=(8.5, 0.36 * len(bill) + 1.2))[1]
    rows = bill.sort_values("energy_kwh", kind="stable").reset_index(drop=True)
    for place, row in rows.iterrows():
        label, value = str(row["scheduler"]), row["energy_kwh"]
        colour = scheduler_colour(label)
        for ends, width in (("_wide", 1.2), ("", 5.0)):
            low, high = row[f"energy_kwh{ends}_low"], row[f"energy_kwh{ends}_high"]
            ax.plot([low, high], [place, place], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(value, place, "o", ms=8, color=colour, mfc="white" if PENALTY in label else colour)
        ax.annotate(
            f"{short(value)} kWh, {row['money']:.2f} euro",
            (row["energy_kwh_wide_high"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            size="small",
        )
    ax.set_xscale("log")
    ax.set_yticks(range(len(rows)), rows["scheduler"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(right=ax.get_xlim()[1] * 4)  # room for the last value
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.minorticks_off()
    ax.set_xlabel("energy of all devices over the period, kWh")
    ax.grid(visible=False, axis="y")
    return titled(ax, "Energy while tasks run; thin lines with the model's error", "simulated")


# -- The bill of the strategies

STRATEGIES = {"All Edge": "all-edge", "All Remote": "all-remote", "Hybrid Edge": "hybrid"}
# The strategies' own items, and a 1080p image for the small CLIP, whose 49 patches are sent.
ENCODED = {
    item.encoder: item for item in (*ITEMS, EncodingPrice("clip-vit-b32", 1080 * 1920 * 3, 49, 768))
}


@dataclass(frozen=True)
class Power:
    """Assumed power of what the calibrated board does not cover."""

    edge_llm_w: float = 40.0  # of the edge module while it runs the LLM
    server_w: float = 300.0  # of the server's GPU, by its data sheet
    server_share: float = 0.7  # of that, while it works on a request
    pue: float = 1.2  # what the data centre draws over what its servers draw
    network_j_per_bit: float = 1e-6  # both directions


# Ends of the plausible range, assumed. Edge: well above idle, at most the 60 W of MAXN. Server: the
# data sheet of an A100 80GB PCIe says 300 W; decoding leaves its arithmetic idle. PUE: a new hall
# to an old one. Network: 0.06 kWh/GB in 2015, fixed lines, halving every two years (Aslan et al.,
# J. Ind. Ecol. 2018) is 2.7e-5 J/bit then and 1e-6 ten years later; what one more bit adds is less.
LEAST = Power(edge_llm_w=25.0, server_share=0.4, pue=1.05, network_j_per_bit=1e-7)
MOST = Power(edge_llm_w=60.0, server_share=1.0, pue=1.6, network_j_per_bit=2.7e-5)


def request_j(strategy: str, encoder: str, power: Power = Power()) -> dict[str, float]:
    """Joules of one request by where they are spent: ``edge``, ``server`` and ``network``.

    ``strategy`` is ``all-edge``, ``all-remote`` or ``hybrid``; ``encoder`` one of ``ENCODED``.
    """
    setting = Setting(items=[ENCODED[encoder]])
    cost, work = modelled(strategy, setting), read_work()[encoder]
    edge_j, server_s = 0.0, 0.0
    if strategy != "all-remote":
        edge_j = calibrated_model().energy_j(work, setting.component, setting.power_w)
    if strategy == "all-edge":
        edge_j += power.edge_llm_w * cost.llm_s
    else:
        server_s = cost.llm_s if strategy == "hybrid" else cost.encode_s + cost.llm_s
    server_w = power.server_w * power.server_share * power.pue
    network_j = power.network_j_per_bit * 8 * (cost.up_bytes + cost.down_bytes)
    return {"edge": edge_j, "server": server_w * server_s, "network": network_j}


def strategy_annual(scenario: SavingsScenario) -> pd.DataFrame:
    """The bill, one row a strategy.

    ``strategy``; ``edge_kwh``, ``server_kwh``, ``network_kwh`` and their sum ``energy_kwh``;
    ``low_kwh`` and ``high_kwh``, the sums at the ends of the plausible range; ``money`` and
    ``carbon_kg`` at the scenario's price and carbon intensity, wherever the energy is drawn.
    """

    def kwh(strategy: str, power: Power) -> dict[str, float]:
        parts = {"edge_kwh": 0.0, "server_kwh": 0.0, "network_kwh": 0.0}
        for encoder in scenario.mix:
            requests = scenario.devices * scenario.tasks(encoder)
            for place, joules in request_j(strategy, encoder, power).items():
                parts[f"{place}_kwh"] += requests * joules / J_PER_KWH
        return parts

    rows = []
    for name, strategy in STRATEGIES.items():
        parts, least, most = (kwh(strategy, power) for power in (Power(), LEAST, MOST))
        sums = (sum(each.values()) for each in (parts, least, most))
        named = dict(zip(("energy_kwh", "low_kwh", "high_kwh"), sums, strict=True))
        rows.append({"strategy": name, **parts, **named})
    table = pd.DataFrame(rows)
    return table.assign(
        money=scenario.price_per_kwh * table["energy_kwh"],
        carbon_kg=scenario.gco2_per_kwh / 1000 * table["energy_kwh"],
    )
