"""From the table of runs to what one device takes for any number of tasks.

A device learns anew: its first tasks cost what the played run says, all later ones what the second
half of that run took on average. Between the counts that were kept the sums are linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.study.savings_runs import NO_ARM, NOBODY, SUMS

Array = NDArray[np.float64]


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


class Played:
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
                "NOTEBOOKS=10_savings`, or of mllm_sched.study.savings_runs.play"
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
