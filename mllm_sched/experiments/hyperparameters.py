"""Hyperparameters for a task from the profiles of other tasks.

The likelihood is so flat that another processor ends elsewhere. So the fits for the simulated board
are data, which ``python -m mllm_sched.experiments.hyperparameters`` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.arms import ORIN_POWER_LEVELS, ArmSpace
from mllm_sched.atomic_io import write_whole
from mllm_sched.devices import Expected, KnownDevice
from mllm_sched.devices.orin_model import COMPONENTS
from mllm_sched.devices.simulated import ACCOUNTINGS, SimulatedOrin
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.tasks import Task

FITS = paths.DATA / "hyperparameters" / "agx_orin_sim.csv"
QUANTITIES = ("energy_j", "latency_s")
NOISE_SD = 0.02  # scatter of a log measurement in the profiles
DIGITS = 6  # significant ones
NO_CPU = ("gpu", "dla")
KEY = ["components", "power_levels", "accounting", "encoder"]
FACTORS = ["component", "power_w", "load"]


def all_tasks() -> list[Task]:
    """One task for every encoder whose work is known."""
    return [Task(modality, name) for name, modality in encoder_modalities().items()]


def transferred(
    device: KnownDevice, task: Task, others: Sequence[Task]
) -> dict[str, Hyperparameters]:
    """Hyperparameters by quantity, from the profiles of other tasks on the same device.

    Read from the data where these are kept for the device, fitted otherwise. The task's own profile
    is not used.
    """
    others = [other for other in others if other.encoder != task.encoder]
    all_others = [other for other in all_tasks() if other.encoder != task.encoder]
    if isinstance(device, SimulatedOrin) and device.stationary and others == all_others:
        kept = _kept().get((*_board_key(device), task.encoder))
        if kept:
            return dict(kept)
    return fitted(device.space, [device.expected_all(other) for other in others])


def fitted(space: ArmSpace, profiles: Sequence[Expected]) -> dict[str, Hyperparameters]:
    """Hyperparameters by marginal likelihood, from one profile per encoder; needs PyTorch.

    A profile holds true means; every arm is measured twice, with noise.
    """
    from mllm_sched.schedulers import fit_hyperparameters

    rng = np.random.default_rng(0)
    rows = np.repeat(space.features(), 2, axis=0)
    fits = {}
    for quantity in QUANTITIES:
        logs = np.log([np.repeat(getattr(profile, quantity), 2) for profile in profiles])
        noisy = logs + NOISE_SD * rng.standard_normal(logs.shape)
        fits[quantity] = _rounded(fit_hyperparameters(space, rows, noisy))
    return fits


def _rounded(fit: Hyperparameters) -> Hyperparameters:
    variance, noise, *factors = (
        float(f"{value:.{DIGITS}g}") for value in (fit.variance, fit.noise_variance, *fit.factors)
    )
    return Hyperparameters(variance, noise, tuple(factors))


def _board_key(board: SimulatedOrin) -> tuple[str, str, str]:
    components, levels, _ = (factor.levels for factor in board.space.factors)
    return "+".join(map(str, components)), "+".join(f"{w:g}" for w in levels), board.accounting


@cache
def _kept() -> Mapping[tuple[str, ...], dict[str, Hyperparameters]]:
    table = pd.read_csv(FITS, dtype=dict.fromkeys(KEY, str))
    return {
        key: {
            row["quantity"]: Hyperparameters(
                row["variance"], row["noise_variance"], tuple(row[FACTORS].astype(float))
            )
            for _, row in group.iterrows()
        }
        for key, group in table.groupby(KEY)
    }


def cases() -> Iterator[tuple[SimulatedOrin, Task]]:
    """The boards and tasks of the studies."""
    tasks, as_it_is = all_tasks(), (COMPONENTS, ACCOUNTINGS[0])
    changed = [(NO_CPU, ACCOUNTINGS[0]), *((COMPONENTS, other) for other in ACCOUNTINGS[1:])]
    for components, accounting in product((COMPONENTS, NO_CPU), ACCOUNTINGS):
        board = SimulatedOrin(components=components, accounting=accounting)
        yield from ((board, task) for task in tasks)
    for level in ORIN_POWER_LEVELS:
        for components, accounting in (as_it_is, *changed):
            board = SimulatedOrin(
                components=components, power_levels=(level,), accounting=accounting
            )
            alone = (components, accounting) != as_it_is
            yield from ((board, task) for task in (tasks[:1] if alone else tasks))


def fit_table(cases: Iterable[tuple[SimulatedOrin, Task]]) -> pd.DataFrame:
    """The fits for some boards and tasks, one row a quantity."""
    rows: list[dict[str, Any]] = []
    for board, task in cases:
        others = [other for other in all_tasks() if other.encoder != task.encoder]
        key = dict(zip(KEY, (*_board_key(board), task.encoder), strict=True))
        fits = fitted(board.space, [board.expected_all(other) for other in others])
        for quantity, fit in fits.items():
            values = {"variance": fit.variance, "noise_variance": fit.noise_variance}
            factors = dict(zip(FACTORS, fit.factors, strict=True))
            rows.append({**key, "quantity": quantity, **values, **factors})
    return pd.DataFrame(rows)


def main() -> None:
    """Fit all cases and write the table; half a minute to two."""
    paths.need_checkout()
    FITS.parent.mkdir(exist_ok=True)
    made = fit_table(cases())
    write_whole(FITS, made.to_csv(index=False, lineterminator="\n").encode())
    print(f"{len(made)} fits in {FITS}")


if __name__ == "__main__":
    main()
