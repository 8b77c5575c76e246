"""One scheduler on one device for one seed, and sweeps of many: a table with a row per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Device, KnownDevice, open_device
from mllm_sched.devices.base import Expected
from mllm_sched.experiments.parallel import spread
from mllm_sched.schedulers import Decision, Scheduler, make_scheduler
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

COLUMNS = {
    "arm": int,
    "energy_j": float,
    "latency_s": float,
    "true_energy_j": float,
    "true_latency_s": float,
    "oracle_energy_j": float,
    "certified": bool,
    "infeasible": bool,
    "failed": object,
}
SEEDS_PER_JOB = 5  # a job of this size takes some seconds


@dataclass(frozen=True)
class Rule:
    """A scheduler as it enters a comparison."""

    label: str  # in tables and figures
    name: str  # for ``make_scheduler``
    settings: Mapping[str, Any] = field(default_factory=dict)  # replace a run's common ones


class RunStopped(RuntimeError):
    """A device broke during a run; ``table`` holds the tasks done before."""

    def __init__(self, message: str, table: pd.DataFrame) -> None:
        super().__init__(message, table)  # both, so that it can be pickled
        self.table = table

    def __str__(self) -> str:
        return str(self.args[0])


def run(
    rule: Rule,
    device: Device,
    task: Task,
    steps: int,
    *,
    limits: Mapping[str, float],
    seed: int = 0,
    seeds: Iterable[Arm] = (),
    allow_infeasible: bool = False,
    watch: Callable[[Scheduler, Decision], None] | None = None,
    scheduler: Scheduler | None = None,
) -> pd.DataFrame:
    """Run one scheduler for ``steps`` tasks.

    ``limits`` and ``seeds`` are those of ``Scheduler``, ``seed`` that of its randomness. ``watch``
    is called with the scheduler and its decision after every task; ``scheduler`` is one to go on
    with. With ``allow_infeasible`` the oracle's arm is the least violating one where none meets the
    limits.

    One row per task: ``scheduler``, ``seed``, ``step``, ``arm`` (index), observed ``energy_j`` and
    ``latency_s``, ``true_energy_j`` and ``true_latency_s`` (means of that arm then),
    ``oracle_energy_j`` (least true energy within the limits then), ``certified``, ``infeasible``
    (the scheduler's verdict that no arm meets the limits), ``failed``.
    True and oracle columns are NaN on a device whose true means are unknown.

    Raises ValueError if ``steps`` is below 1 or no arm of a known device meets the limits, and
    RunStopped if the device raises or a changing device leaves no arm within the limits.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    truth = _Truth(device, limits, allow_infeasible)
    if scheduler is None:
        settings = dict(rule.settings)
        if rule.name == "oracle" and truth.known:
            settings.setdefault("truth", lambda: vars(truth.means))
        rng = np.random.default_rng([seed, 1])  # the device takes [seed, 0]
        common = {"limits": limits, "seeds": seeds, "rng": rng}
        scheduler = make_scheduler(rule.name, device.space, **{**common, **settings})
    available = getattr(device, "available", lambda: None)  # arms that can run now
    rows: list[tuple[Any, ...]] = []
    try:
        for _ in range(steps):
            truth.update(task)
            decision = scheduler.ask(available=available())
            done = device.run(decision.arm, task)
            if done.failed:
                scheduler.tell(decision.id, failed=done.failed)
            else:
                scheduler.tell(decision.id, energy_j=done.energy_j, latency_s=done.latency_s)
            arm, verdicts = decision.arm.index, (decision.certified, decision.infeasible)
            rows.append(
                (arm, done.energy_j, done.latency_s, *truth.of(arm), *verdicts, done.failed)
            )
            if watch:
                watch(scheduler, decision)
    except (OSError, RuntimeError, ValueError) as error:
        if not rows and isinstance(error, ValueError):
            raise  # the call was wrong; nothing broke
        message = f"{device.name} stopped after {len(rows)} tasks: {error}"
        raise RunStopped(message, _table(rule, seed, rows)) from error
    return _table(rule, seed, rows)


class _Truth:
    """True means of a device, and the oracle's energy; computed again only where they change."""

    def __init__(self, device: Device, limits: Mapping[str, float], allow_infeasible: bool) -> None:
        # Checked once: checking a protocol takes longer than a decision.
        self.known = device if isinstance(device, KnownDevice) else None
        self.limits, self.allow_infeasible = limits, allow_infeasible
        nothing = np.full(len(device.space), np.nan)
        self.means, self.best_j = Expected(nothing, nothing), np.nan

    def update(self, task: Task) -> None:
        if self.known is None or (means := self.known.expected_all(task)) is self.means:
            return
        self.means = means
        best, met = truly_best(vars(means), "energy_j", self.limits)
        if not (met or self.allow_infeasible):
            raise ValueError(_impossible(self.known, means, self.limits))
        self.best_j = float(means.energy_j[best])

    def of(self, arm: int) -> tuple[float, float, float]:
        return self.means.energy_j[arm], self.means.latency_s[arm], self.best_j


def _impossible(device: Device, means: Expected, limits: Mapping[str, float]) -> str:
    for name, limit in limits.items():
        values = getattr(means, name)
        least = int(values.argmin())
        if values[least] > limit:
            return (
                f"limit {name}={limit:g}: no arm can meet it; the least, {device.space[least]}, "
                f"takes {values[least]:.4g}; raise the limit"
            )
    return f"limits {dict(limits)}: no arm can meet all of them; raise one"


def _table(rule: Rule, seed: int, rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    table.insert(0, "scheduler", pd.Categorical([rule.label] * len(rows)))
    table.insert(1, "seed", seed)
    table.insert(2, "step", np.arange(len(rows)))
    return table.assign(failed=pd.Categorical(table["failed"]))


def sweep(
    rules: Sequence[Rule],
    device: str,
    task: Task,
    steps: int,
    seeds: int | Sequence[int],
    *,
    limits: Mapping[str, float],
    trusted: Iterable[Arm] = (),
    device_settings: Mapping[str, Any] | None = None,
    allow_infeasible: bool = False,
    n_jobs: int | None = None,
    dask: str | None = None,
    label: str = "",
) -> pd.DataFrame:
    """The tables of ``run`` for every rule and seed, ordered by rule, seed and step.

    For a seed all rules meet a device opened with the same seed, hence the same noise. ``device``
    and ``device_settings`` are arguments of ``open_device``; ``seeds`` are the seeds, or how many:
    0, 1, ...; ``trusted`` are the schedulers' seed arms. For the others see ``spread``.
    """
    labels = [rule.label for rule in rules]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two rules share a label: {labels}")
    numbers = list(range(seeds) if isinstance(seeds, int | np.integer) else seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={seeds!r}: give at least one, and none twice")
    chunks = [numbers[i : i + SEEDS_PER_JOB] for i in range(0, len(numbers), SEEDS_PER_JOB)]
    settings = dict(device_settings or {})
    terms = {"limits": dict(limits), "seeds": list(trusted), "allow_infeasible": allow_infeasible}
    jobs = [
        (rule, device, settings, task, steps, chunk, terms) for rule in rules for chunk in chunks
    ]
    tables = spread(_job, jobs, label=label or device, n_jobs=n_jobs, dask=dask)
    table = pd.concat(tables, ignore_index=True)
    # Concatenation may have turned categories into strings.
    table["scheduler"] = pd.Categorical(table["scheduler"].astype(str), categories=labels)
    table["failed"] = table["failed"].astype("category")
    return table


def _job(
    rule: Rule,
    device: str,
    settings: Mapping[str, Any],
    task: Task,
    steps: int,
    seeds: Sequence[int],
    terms: Mapping[str, Any],
) -> pd.DataFrame:
    tables = []
    for seed in seeds:
        board = open_device(device, seed=np.random.SeedSequence([seed, 0]), **settings)
        try:
            tables.append(run(rule, board, task, steps, seed=seed, **terms))
        finally:
            board.close()
    return pd.concat(tables, ignore_index=True)
