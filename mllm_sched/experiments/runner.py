"""One scheduler, one device, one seed: a table with a row for every task; and sweeps of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Device, KnownDevice, open_device
from mllm_sched.devices.base import Expected
from mllm_sched.experiments.parallel import spread
from mllm_sched.measurement import Measurement
from mllm_sched.schedulers import Decision, Scheduler, make_scheduler
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

NUMBERS = ("energy_j", "latency_s", "true_energy_j", "true_latency_s", "oracle_energy_j")
VERDICTS = ("certified", "infeasible")


@dataclass(frozen=True)
class Rule:
    """A scheduler as it enters a comparison.

    Attributes
    ----------
    label
        What tables and figures call it.
    name
        What ``make_scheduler`` calls it.
    settings
        The rule's own; they may replace what all rules of a run are given, limits for instance.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class RunStopped(RuntimeError):
    """A device broke in mid-run; ``table`` holds every task that was done before."""

    def __init__(self, message: str, table: pd.DataFrame) -> None:
        super().__init__(message, table)  # both, or it could not travel between processes
        self.table = table

    def __str__(self) -> str:
        return str(self.args[0])


def run(
    rule: Rule,
    device: Device,
    task: Task | Iterable[Task],
    steps: int,
    *,
    limits: Mapping[str, float],
    seed: int = 0,
    seeds: Iterable[Arm] = (),
    objective: str = "energy_j",
    allow_infeasible: bool = False,
    watch: Callable[[Scheduler, Decision], None] | None = None,
    scheduler: Scheduler | None = None,
) -> pd.DataFrame:
    """Play one scheduler for some tasks.

    Parameters
    ----------
    rule
        Who chooses.
    device
        Where it runs.
    task
        The task, again and again; or a stream of tasks.
    steps
        How many; fewer if the stream ends.
    limits, seeds, objective
        See ``Scheduler``.
    allow_infeasible
        Whether to play on where no arm can meet the limits; the oracle's arm is then the one least
        beyond them.
    seed
        Of the scheduler's own randomness. The device was opened with a seed of its own.
    watch
        Called with the scheduler and its decision after every task, to look at what it knows.
    scheduler
        One that has learned already, to go on with; by default a new one.

    Returns
    -------
    One row per task: ``scheduler``, ``seed``, ``step``, ``arm`` (index), ``energy_j`` and
    ``latency_s`` as observed, ``true_energy_j`` and ``true_latency_s`` (means of that arm then),
    ``oracle_energy_j`` (least true energy within the limits then), ``certified``, ``infeasible``
    (the scheduler's verdict that no arm can meet them), ``failed``.
    On a device whose truth nobody knows, the true and oracle columns are NaN.

    Raises
    ------
    ValueError
        If ``steps`` is below 1, or no arm can meet the limits and the device knows it, unless
        ``allow_infeasible``.
    RunStopped
        If the device raises, or a changing board leaves no arm within the limits; it carries the
        tasks done so far.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    tasks: Iterator[Task] = repeat(task) if isinstance(task, Task) else iter(task)
    truth = _Truth(device, limits, objective, allow_infeasible)
    scheduler = scheduler or _scheduler(rule, device, truth, limits, seed, seeds, objective)
    rows: list[tuple[Any, ...]] = []  # arm, ``NUMBERS``, ``VERDICTS``, why it failed
    available = getattr(device, "available", lambda: None)  # a board may say what cannot run
    try:
        for current in islice(tasks, steps):
            true = truth.at(current)
            decision = scheduler.ask(available=available())
            measurement = device.run(decision.arm, current)
            _tell(scheduler, decision.id, measurement)
            arm, observed = decision.arm.index, (measurement.energy_j, measurement.latency_s)
            verdicts = decision.certified, decision.infeasible
            rows.append((arm, *observed, *true(arm), *verdicts, measurement.failed))
            if watch:
                watch(scheduler, decision)
    except (OSError, RuntimeError, ValueError) as error:
        if not rows and isinstance(error, ValueError):
            raise  # the call was wrong; nothing broke
        message = f"{device.name} stopped after {len(rows)} tasks: {error}"
        raise RunStopped(message, _table(rule, seed, rows)) from error
    return _table(rule, seed, rows)


class _Truth:
    """The true means of a device, asked for again only where they can change."""

    def __init__(
        self, device: Device, limits: Mapping[str, float], objective: str, allow_infeasible: bool
    ) -> None:
        self.device, self.limits, self.objective = device, limits, objective
        self.allow_infeasible = allow_infeasible
        # Asked once: whether a class fits a protocol takes longer to find out than a decision.
        self.known = device if isinstance(device, KnownDevice) else None
        self.means: Expected | None = None
        self.quantities: dict[str, np.ndarray] = {}  # the means by name, as the oracle wants them
        self._row: Callable[[int], tuple[float, float, float]] = lambda arm: (np.nan,) * 3

    def at(self, task: Task) -> Callable[[int], tuple[float, float, float]]:
        """From an arm's index to its true energy and latency, and the oracle's energy."""
        means = self.known.expected_all(task) if self.known else None
        if means is not None and means is not self.means:
            self.means = means
            self.quantities = {"energy_j": means.energy_j, "latency_s": means.latency_s}
            energy, latency, best = means.energy_j.tolist(), means.latency_s.tolist(), self._best()
            self._row = lambda arm: (energy[arm], latency[arm], best)
        return self._row

    def _best(self) -> float:
        best, met = truly_best(self.quantities, self.objective, self.limits)
        if not (met or self.allow_infeasible):
            raise ValueError(self._impossible(self.quantities))
        return float(self.quantities["energy_j"][best])

    def _impossible(self, values: Mapping[str, np.ndarray]) -> str:
        for name, limit in self.limits.items():
            least = int(values[name].argmin())
            if values[name][least] > limit:
                return (
                    f"limit {name}={limit:g}: no arm can meet it; the least, "
                    f"{self.device.space[least]}, takes {values[name][least]:.4g}; raise the limit"
                )
        return f"limits {dict(self.limits)}: no arm can meet all of them; raise one"


def _scheduler(
    rule: Rule,
    device: Device,
    truth: _Truth,
    limits: Mapping[str, float],
    seed: int,
    seeds: Iterable[Arm],
    objective: str,
) -> Scheduler:
    settings = dict(rule.settings)
    if rule.name == "oracle":
        settings.setdefault("truth", (lambda: truth.quantities) if truth.known else None)
    rng = np.random.default_rng([seed, 1])  # apart from the device's, which takes [seed, 0]
    common = {"objective": objective, "limits": limits, "seeds": seeds, "rng": rng}
    return make_scheduler(rule.name, device.space, **{**common, **settings})


def _tell(scheduler: Scheduler, decision: int, measurement: Measurement) -> None:
    if measurement.failed:
        scheduler.tell(decision, failed=measurement.failed)
    else:
        scheduler.tell(decision, energy_j=measurement.energy_j, latency_s=measurement.latency_s)


def _table(rule: Rule, seed: int, rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    columns = ["arm", *NUMBERS, *VERDICTS, "failed"]
    types = {"arm": int, **dict.fromkeys(NUMBERS, float), **dict.fromkeys(VERDICTS, bool)}
    table = pd.DataFrame(rows, columns=columns).astype(types)
    table.insert(0, "scheduler", pd.Categorical([rule.label] * len(rows)))
    table.insert(1, "seed", seed)
    table.insert(2, "step", np.arange(len(rows)))
    return table.assign(failed=pd.Categorical(table["failed"]))


SEEDS_PER_JOB = 5  # a job of this size takes some seconds


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
    """Run every rule with every seed.

    For a seed all rules meet a device that was opened with the same seed, so that they meet the
    same noise. The table does not depend on how the work was spread.

    Parameters
    ----------
    rules, task, steps, limits, allow_infeasible
        See ``run``.
    device
        As ``open_device`` knows it.
    seeds
        The seeds, or how many: 0, 1, ...
    trusted
        Seed arms of the schedulers.
    device_settings
        Further arguments of ``open_device``.
    n_jobs, dask, label
        See ``spread``.

    Returns
    -------
    The tables of ``run``, ordered by rule, seed and step.
    """
    if not rules:
        raise ValueError("rules=[]: give at least one")
    if len({rule.label for rule in rules}) < len(rules):
        raise ValueError(f"two rules share a label: {[rule.label for rule in rules]}")
    counted = isinstance(seeds, int | np.integer)
    numbers = list(range(seeds)) if counted else list(seeds)  # type: ignore[arg-type]
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
    return _as_categories(table, [rule.label for rule in rules])


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


def _as_categories(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Labels in the order of the rules; concatenation may have turned them into strings."""
    table["scheduler"] = pd.Categorical(table["scheduler"].astype(str), categories=labels)
    table["failed"] = table["failed"].astype("category")
    return table
