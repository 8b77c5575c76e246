"""Replay of a measured table: every task draws one of the repeats of its arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.base import Expected
from mllm_sched.measurement import Measurement, TableError, factor_columns, read_table
from mllm_sched.tasks import Task


class TraceDevice:
    """Replays a table of measurements.

    Rows of the same encoder and arm are its repeats; a task draws one of them. A row that
    summarises repeats carries ``latency_sd_s`` and ``energy_sd_j``; a task then draws from
    log-normals of that mean and spread.

    Parameters
    ----------
    path
        CSV or Parquet in the schema of ``measurement.py``; relative to the caller's folder or the
        repository. The arms are every combination of the levels in it.
    seed
        Of the draws.

    Raises
    ------
    TableError
        If the table does not hold every arm for every encoder in it.
    """

    def __init__(
        self, path: str | Path, seed: int | np.random.Generator | np.random.SeedSequence = 0
    ) -> None:
        self.name = f"trace:{path}"
        self.rng = np.random.default_rng(seed)
        file = paths.resolve(path)
        trace = _read(str(path), file.resolve(), file.stat().st_mtime_ns)
        self.space, self.modalities = trace.space, dict(trace.modalities)
        self.evidence, self.energy_evidence = trace.evidence, trace.energy_evidence
        self._draws, self._means = trace.draws, trace.means

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that were measured."""
        return tuple(self._means)

    def run(self, arm: Arm, task: Task) -> Measurement:
        """Draw a repeat of the arm."""
        self._check(task)
        repeats = self._draws[task.encoder][self.space.index(arm)]
        drawn = repeats[int(self.rng.integers(len(repeats)))]
        latency_s, latency_sd, energy_j, energy_sd, failed = drawn
        if latency_sd:
            latency_s = self._scattered(latency_s, latency_sd)
        if energy_sd:
            energy_j = self._scattered(energy_j, energy_sd)
        evidence = self.evidence, self.energy_evidence
        return Measurement(arm, task, latency_s, energy_j, *evidence, failed)

    def _scattered(self, mean: float, sd: float) -> float:
        """Log-normal of this mean and standard deviation, so that nothing falls below zero."""
        variance = math.log1p((sd / mean) ** 2)
        draw = math.sqrt(variance) * self.rng.standard_normal() - variance / 2
        return mean * math.exp(draw)

    def expected(self, arm: Arm, task: Task) -> Measurement:
        """Mean over the repeats of the arm that did not fail."""
        means, index = self.expected_all(task), self.space.index(arm)
        latency_s, energy_j = float(means.latency_s[index]), float(means.energy_j[index])
        failed = "" if math.isfinite(latency_s) else "every repeat failed"
        evidence = self.evidence, self.energy_evidence
        return Measurement(arm, task, latency_s, energy_j, *evidence, failed)

    def expected_all(self, task: Task) -> Expected:
        """Means over the repeats, infinite for an arm whose every repeat failed."""
        self._check(task)
        return self._means[task.encoder]

    def _check(self, task: Task) -> None:
        if task.encoder not in self._means:
            known = ", ".join(self.encoders)
            raise ValueError(f"encoder {task.encoder!r} is not in {self.name}: it holds {known}")
        if task.modality != self.modalities[task.encoder]:
            right = self.modalities[task.encoder]
            raise ValueError(f"encoder {task.encoder!r} takes {right}, not {task.modality}")

    def close(self) -> None:
        """Nothing to release."""


Draw = tuple[float, float, float, float, str]


@dataclass(frozen=True)
class _Trace:
    """What a table says, by encoder and arm."""

    space: ArmSpace
    evidence: str
    energy_evidence: str
    modalities: Mapping[str, str]
    draws: Mapping[str, list[list[Draw]]]
    means: Mapping[str, Expected]


@lru_cache(maxsize=8)
def _read(path: str, file: Path, modified_ns: int) -> _Trace:
    """Read a table once, for the many devices of a sweep that replay it."""
    table = read_table(file)
    space = _infer_space(table)
    arms = {
        str(encoder): _by_arm(rows, space, f"{path}, encoder {encoder}")
        for encoder, rows in table.groupby("encoder", sort=False)
    }
    return _Trace(
        space,
        _single(table["evidence"], "evidence", path),
        _single(table["energy_evidence"], "energy_evidence", path),
        dict(zip(table["encoder"], table["modality"], strict=True)),
        {name: [_draws(rows) for rows in groups] for name, groups in arms.items()},
        {name: _mean(groups) for name, groups in arms.items()},
    )


def _single(column: pd.Series, name: str, path: str) -> str:
    classes = column.unique()
    if len(classes) > 1:
        raise TableError(f"{path}: column {name} mixes {', '.join(classes)}; split the table")
    return str(classes[0])


def _infer_space(table: pd.DataFrame) -> ArmSpace:
    columns = factor_columns(table)
    if not columns:
        raise TableError("the table has no column for any factor of an arm")
    known = {factor.name: factor for factor in ArmSpace.agx_orin().factors}
    return ArmSpace([_infer_factor(table[name], known.get(name)) for name in columns])


def _infer_factor(column: pd.Series, known: Factor | None) -> Factor:
    levels = list(dict.fromkeys(column.tolist()))
    if not isinstance(levels[0], str):
        levels = sorted(levels)
    if known and set(levels) <= set(known.levels):
        kept = [level for level in known.levels if level in levels]
        labels = [known.labels[known.index(level)] for level in kept]
        return Factor(known.name, kept, log=known.log, labels=labels)
    return Factor(str(column.name), levels)


def _by_arm(rows: pd.DataFrame, space: ArmSpace, where: str) -> list[pd.DataFrame]:
    groups = dict(iter(rows.groupby(list(space.names), sort=False)))
    wanted = list(product(*(factor.levels for factor in space.factors)))
    lacking = [str(space[index]) for index, key in enumerate(wanted) if key not in groups]
    if lacking:
        shown = "; ".join(lacking[:3]) + ("; ..." if len(lacking) > 3 else "")
        raise TableError(f"{where}: lacks {len(lacking)} of {len(space)} arms: {shown}")
    return [groups[key] for key in wanted]


def _draws(rows: pd.DataFrame) -> list[Draw]:
    """Plain tuples: latency_s and its sd, energy_j and its sd, why it failed."""
    latency_sd = rows.get("latency_sd_s", pd.Series(0.0, rows.index)).fillna(0.0)
    energy_sd = rows.get("energy_sd_j", pd.Series(0.0, rows.index)).fillna(0.0)
    columns = (rows["latency_s"], latency_sd, rows["energy_j"], energy_sd, rows["failed"])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _mean(arms: list[pd.DataFrame]) -> Expected:
    done = [rows[rows["failed"] == ""] for rows in arms]
    means = Expected(
        np.array([rows["latency_s"].mean() if len(rows) else np.inf for rows in done]),
        np.array([rows["energy_j"].mean() if len(rows) else np.inf for rows in done]),
    )
    for values in (means.latency_s, means.energy_j):
        values.flags.writeable = False  # shared by all devices that replay the table
    return means
