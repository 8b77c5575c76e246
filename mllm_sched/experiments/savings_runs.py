"""What a year's bill is computed from: the calculator's inputs, and runs of every scheduler.

A run becomes one row: sums over its first tasks at some counts, and means over its second half,
when it has learnt. Sums are of energy, of tasks truly beyond the limit, and of seconds. A device
learns anew: its first tasks cost what the played run says, all later ones what the second half of
that run took on average. Between the counts that were kept the sums are linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched import paths
from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices import KnownDevice, open_device
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.lineup import fitted_lineup, full_power_arms
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.tasks import Task

Array = NDArray[np.float64]

DEFAULT_MIX = {"clip-vit-l14-336": 6, "whisper-small": 3, "videomae-base": 1}


@dataclass(frozen=True)
class SavingsScenario:
    """Who encodes how much, where.

    Attributes
    ----------
    tasks_per_day
        Of one device.
    devices
        How many.
    price_per_kwh
        Of electricity, in any currency; the examples say euro.
    gco2_per_kwh
        Carbon intensity, grams of CO2e.
    mix
        Encoder to its share of the tasks; scaled to sum to 1.
    limit_s
        Latency limit of encoding; it must be one that was played.
    days
        The period.

    Raises
    ------
    ValueError
        For a value outside of what is stated; the message names it and says what to give.

    Examples
    --------
    >>> SavingsScenario(mix={"whisper-small": 3, "clip-vit-b32": 1}).mix
    {'whisper-small': 0.75, 'clip-vit-b32': 0.25}
    """

    tasks_per_day: float = 10_000
    devices: int = 100
    price_per_kwh: float = 0.30
    gco2_per_kwh: float = 300.0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    limit_s: float = 0.2
    days: float = 365.0

    def __post_init__(self) -> None:
        for name in ("tasks_per_day", "limit_s", "days"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0")
        for name in ("price_per_kwh", "gco2_per_kwh"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: give a number, 0 or more")
        if not 1 <= self.devices < math.inf or self.devices != int(self.devices):
            raise ValueError(f"devices={self.devices}: give a whole number, 1 or more")
        object.__setattr__(self, "mix", _shares(self.mix))

    def tasks(self, encoder: str) -> float:
        """Tasks of an encoder on one device in the whole period."""
        return self.tasks_per_day * self.days * self.mix.get(encoder, 0.0)


def _shares(mix: Mapping[str, float]) -> dict[str, float]:
    known = encoder_modalities()
    for encoder, share in mix.items():
        if encoder not in known:
            raise ValueError(f"mix: encoder {encoder!r}: expected some of {', '.join(known)}")
        if not 0 <= share < math.inf:
            raise ValueError(f"mix: {encoder}={share}: give a share, 0 or more")
    total = sum(mix.values())
    if not 0 < total < math.inf:
        raise ValueError(f"mix: shares sum to {total:g}: give at least one a number above 0")
    return {encoder: share / total for encoder, share in mix.items() if share > 0}


RUNS = Path("10_savings") / "runs.csv"  # under the folder of results
ENCODERS = ("clip-vit-l14-336", "whisper-small", "videomae-base", "clip-vit-b32")
LIMITS_S = (0.05, 0.1, 0.2, 0.5, 1.0)
NOBODY = "nobody"  # in the place of a scheduler, where no arm meets the limit
NO_ARM = "no arm"  # of the trusted ones is beyond the limit
SUMS = ("energy_j", "beyond", "busy_s")
LATE = ("late_energy_j", "late_beyond", "late_busy_s", "late_idle_w")
RUN = ["scheduler", "seed"]


def play(
    encoders: Sequence[str] = ENCODERS,
    limits_s: Sequence[float] = LIMITS_S,
    *,
    steps: int = 500,
    seeds: int = 5,
    first_seed: int = 0,
    rules: Callable[[KnownDevice, Task], list[Rule]] | None = None,
    board: Mapping[str, Any] | None = None,
    n_jobs: int | None = None,
) -> pd.DataFrame:
    """Play the paper's line-up and the adaptive rule, or other rules, on the simulated board.

    Parameters
    ----------
    encoders, limits_s
        Each encoder is played under each limit (seconds).
    steps, seeds, first_seed
        Tasks in a run, runs of each scheduler, and the seed of the first.
    rules, board
        Who plays on a board and its task; further arguments of the board.
    n_jobs
        See ``sweep``.

    Returns
    -------
    One row a run: ``encoder``, ``limit_s``, ``arms_within`` the limit, ``trusted_beyond`` (the
    trusted components that are not), ``scheduler``, ``seed``, ``late_energy_j``, ``late_beyond``,
    ``late_busy_s`` (means per task of the second half), ``late_idle_w`` (idle power of the module
    at the power levels chosen then), and ``energy_j@n``, ``beyond@n``, ``busy_s@n`` (sums over the
    first n tasks). Where no arm meets the limit nobody plays, and one row says so.

    Raises
    ------
    ValueError
        For fewer than 2 steps or seeds, or an encoder that is not known.
    """
    if steps < 2 or seeds < 2:
        raise ValueError(f"steps={steps}, seeds={seeds}: expected 2 or more of each")
    known = encoder_modalities()
    for encoder in encoders:
        if encoder not in known:
            raise ValueError(f"encoder {encoder!r}: expected one of {', '.join(known)}")
    tables, chosen = [], range(first_seed, first_seed + seeds)
    for encoder in encoders:
        task = Task(known[encoder], encoder)
        device = cast(KnownDevice, open_device(SimulatedOrin.name, **(board or {})))
        who = (rules or fitted_lineup)(device, task)
        spread = {"device_settings": board, "n_jobs": n_jobs}
        for limit_s in limits_s:
            tables.append(_one(device, who, task, limit_s, steps, chosen, **spread))
    return pd.concat(tables, ignore_index=True)


def _one(
    board: KnownDevice,
    rules: Sequence[Rule],
    task: Task,
    limit_s: float,
    steps: int,
    seeds: Sequence[int],
    **spread: Any,
) -> pd.DataFrame:
    """All runs of one encoder under one limit."""
    latency_s = board.expected_all(task).latency_s
    trusted = full_power_arms(board.space)
    facts = {
        "encoder": task.encoder,
        "limit_s": limit_s,
        "arms_within": int((latency_s <= limit_s).sum()),
        "trusted_beyond": _beyond(trusted, latency_s, limit_s),
    }
    if not facts["arms_within"]:
        return pd.DataFrame([{**facts, "scheduler": NOBODY, "seed": 0}])
    table = sweep(
        *(rules, SimulatedOrin.name, task, steps, seeds),
        limits={"latency_s": limit_s},
        trusted=trusted,
        **spread,
        label=f"{task.encoder}, {limit_s:g} s",
    )
    runs = compact(table, limit_s, board.space)
    return pd.DataFrame(facts, index=runs.index).join(runs)


def _beyond(trusted: Sequence[Arm], latency_s: np.ndarray, limit_s: float) -> str:
    names = [str(arm.component) for arm in trusted if latency_s[arm.index] > limit_s]
    return ", ".join(names) or NO_ARM


def counts(steps: int, points: int = 15) -> list[int]:
    """Task counts at which sums are kept: dense at first, where most is learnt; the last is all.

    Examples
    --------
    >>> counts(500)[:4], counts(500)[-1], counts(3)
    ([1, 2, 4, 6], 500, [1, 2, 3])
    """
    return sorted({round(count) for count in np.geomspace(1, steps, points)})


def compact(table: pd.DataFrame, limit_s: float, space: ArmSpace) -> pd.DataFrame:
    """One row a run out of a table of ``sweep``; its columns see ``play``, without the first."""
    model = calibrated_model()
    idle_w = np.array([model.idle_power_w(float(arm.power_w)) for arm in space])
    table = table.assign(
        beyond=(table["true_latency_s"] > limit_s).astype(float),
        busy_s=table["latency_s"],
        idle_w=idle_w[table["arm"].to_numpy()],
    )
    steps = int(table["step"].max()) + 1
    late = table[table["step"] >= steps // 2].groupby(RUN, observed=True)
    means = late[["energy_j", "beyond", "busy_s", "idle_w"]].mean()
    means.columns = pd.Index(LATE)
    sums = table[[*RUN, "step"]].join(table.groupby(RUN, observed=True)[list(SUMS)].cumsum())
    kept = sums[sums["step"].isin([count - 1 for count in counts(steps)])]
    wide = kept.pivot(index=RUN, columns="step", values=list(SUMS))
    wide = wide.loc[means.index]  # pivot spans all categories
    wide.columns = pd.Index([f"{name}@{step + 1}" for name, step in wide.columns])
    runs = means.join(wide).reset_index()
    return runs.assign(scheduler=runs["scheduler"].astype(str))


def read_runs(path: str | Path | None = None) -> pd.DataFrame:
    """The table that notebook 10 wrote.

    Raises
    ------
    FileNotFoundError
        If it has not; the message says what to run.
    """
    path = paths.RESULTS / RUNS if path is None else Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no table of runs ({path.name}): run `make reproduce NOTEBOOKS=10_savings`"
        )
    return pd.read_csv(path)


@dataclass(frozen=True)
class Curve:
    """A sum over the first tasks of every run, and how it goes on.

    Attributes
    ----------
    counts
        Tasks at which it is known; shape (points,).
    sums
        Shape (schedulers, seeds, points).
    late
        What every task after the last count adds; shape (schedulers, seeds).
    """

    counts: Array
    sums: Array
    late: Array

    def after(self, tasks: float) -> Array:
        """The sum over so many tasks, 0 or more and not necessarily whole; (schedulers, seeds)."""
        counts = np.concatenate([[0.0], self.counts])
        sums = np.concatenate([np.zeros((*self.late.shape, 1)), self.sums], axis=-1)
        if tasks >= counts[-1]:
            return sums[..., -1] + (tasks - counts[-1]) * self.late
        right = int(np.searchsorted(counts, tasks, side="right"))
        part = (tasks - counts[right - 1]) / (counts[right] - counts[right - 1])
        return (1 - part) * sums[..., right - 1] + part * sums[..., right]


@dataclass(frozen=True)
class Curves:
    """All that is known of one encoder under one limit; arrays are (schedulers, seeds).

    Attributes
    ----------
    energy_j, beyond, busy_s
        Joules while tasks run; tasks on an arm truly beyond the limit; seconds they take.
    idle_w
        Watts of the module between tasks, at the power levels chosen in the end.
    arms_within
        How many arms meet the limit.
    trusted_beyond
        Trusted components that do not, or ``NO_ARM``.
    """

    energy_j: Curve
    beyond: Curve
    busy_s: Curve
    idle_w: Array
    arms_within: int
    trusted_beyond: str


class PlayedRuns:
    """A table of ``savings_runs.play``, ready for questions.

    Attributes
    ----------
    encoders, limits_s, schedulers
        What it holds.
    seeds
        Runs of each scheduler.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        missing = {"encoder", "limit_s", "scheduler", "seed", "late_energy_j"} - set(runs.columns)
        if missing or runs.empty:
            lacks = ", ".join(sorted(missing)) or "its rows"
            raise ValueError(
                f"the table of runs lacks {lacks}: take that of `make reproduce "
                "NOTEBOOKS=10_savings`, or of mllm_sched.experiments.savings_runs.play"
            )
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
        """What was played of an encoder under a limit.

        Raises
        ------
        ValueError
            If that was not played, or no arm meets the limit; the message says what to choose.
        """
        if encoder not in self.encoders:
            raise ValueError(f"encoder {encoder!r}: played were {', '.join(self.encoders)}")
        if limit_s not in self.limits_s:
            known = ", ".join(f"{limit:g}" for limit in self.limits_s)
            raise ValueError(f"limit_s={limit_s}: played were {known}")
        if (encoder, limit_s) not in self._curves:
            raise ValueError(
                f"{encoder}: no arm encodes within {limit_s:g} s (simulated); "
                "choose a longer limit, or leave this encoder out of the mix"
            )
        return self._curves[encoder, limit_s]

    def can(self, encoder: str, limit_s: float) -> bool:
        """Whether some arm meets the limit."""
        return (encoder, limit_s) in self._curves

    def trusted_beyond(self, encoder: str, limit_s: float) -> str:
        """The trusted components that do not meet the limit themselves; empty if all do."""
        names = self.curves(encoder, limit_s).trusted_beyond
        return "" if names == NO_ARM else names

    def _read(self, group: pd.DataFrame) -> Curves:
        """Rows of one encoder and limit as arrays."""
        order = pd.Categorical(group["scheduler"], self.schedulers)
        group = group.assign(scheduler=order).sort_values(["scheduler", "seed"])
        shape = (len(self.schedulers), self.seeds)
        if len(group) != shape[0] * shape[1]:
            what = f"{group['encoder'].iloc[0]}, {group['limit_s'].iloc[0]:g} s"
            raise ValueError(
                f"{what}: {len(group)} runs, expected {shape[0]} schedulers x {shape[1]} seeds"
            )
        curve = {name: _curve(group, name, shape) for name in SUMS}
        return Curves(
            **curve,
            idle_w=group["late_idle_w"].to_numpy(float).reshape(shape),
            arms_within=int(group["arms_within"].iloc[0]),
            trusted_beyond=str(group["trusted_beyond"].iloc[0]),
        )


def _curve(group: pd.DataFrame, name: str, shape: tuple[int, int]) -> Curve:
    columns = [column for column in group if str(column).startswith(f"{name}@")]
    counts = np.array([float(str(column).split("@")[1]) for column in columns])
    sums = group[columns].to_numpy(float).reshape(*shape, -1)
    late = group[f"late_{name}"].to_numpy(float).reshape(shape)
    return Curve(counts, sums, late)
