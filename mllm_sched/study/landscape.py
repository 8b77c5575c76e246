"""The arms of a board side by side: what each costs, and where more power buys less."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mllm_sched import paths
from mllm_sched.devices import KnownDevice
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.devices.simulated import task_work
from mllm_sched.tasks import Task

PAIR_ARMS = (
    {"component": "gpu", "power_w": 15, "load": 0.2},
    {"component": "dla", "power_w": 30, "load": 1.0},
)


def arm_table(device: KnownDevice, task: Task) -> pd.DataFrame:
    """True mean latency (s) and energy (J) of every arm, one row an arm, its levels as columns."""
    means = device.expected_all(task)
    table = pd.DataFrame([dict(arm.levels) for arm in device.space])
    return table.assign(
        encoder=task.encoder,
        latency_s=means.latency_s,
        energy_j=means.energy_j,
        evidence=device.evidence,
    )


def reversals(table: pd.DataFrame, along: str, quantity: str) -> pd.DataFrame:
    """Steps up one factor at which a quantity rises.

    Parameters
    ----------
    table
        Of ``arm_table``, one encoder.
    along
        The ordered factor that is stepped through, all others held.
    quantity
        A column that one would expect to fall.

    Returns
    -------
    The other factors' levels, ``from``, ``to``, and ``change``: the relative rise.
    """
    others = [name for name in ("component", "power_w", "load") if name in table and name != along]
    rows = []
    groups = table.groupby(others, sort=False) if others else [((), table)]
    for key, group in groups:
        levels = key if isinstance(key, tuple) else (key,)
        ordered = group.sort_values(along)
        values, steps = ordered[quantity].tolist(), ordered[along].tolist()
        for low, high, start, end in zip(values, values[1:], steps, steps[1:], strict=False):
            if high > low:
                rows.append([*levels, start, end, high / low - 1])
    return pd.DataFrame(rows, columns=[*others, "from", "to", "change"])


def energy_accounts(encoders: Sequence[str], modalities: Sequence[str]) -> pd.DataFrame:
    """Energy of every arm under each account of the simulated board.

    Columns: the arm, ``encoder``, and in joules ``marginal`` (idle-subtracted), ``total`` (the
    module while the task runs), ``with_tenants`` (others keep the rest of the component busy).
    """
    from mllm_sched.devices.simulated import SimulatedOrin

    model, rows = calibrated_model(), []
    for encoder, modality in zip(encoders, modalities, strict=True):
        work = task_work(encoder, modality, 1)
        for arm in SimulatedOrin().space:
            where = str(arm.component), float(arm.power_w)
            load = float(arm.load)
            total = model.energy_j(work, *where, load)
            rows.append(
                {
                    **arm.levels,
                    "encoder": encoder,
                    "marginal": model.marginal_energy_j(work, *where),
                    "total": total,
                    "with_tenants": total + model.tenants_energy_j(work, *where, load),
                }
            )
    return pd.DataFrame(rows)


def dla_over_gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Tasks per joule of the DLA over the GPU at full share, by encoder and power level."""
    full = table[table["load"] == table["load"].max()]
    wide = full.pivot(index=["encoder", "power_w"], columns="component", values="energy_j")
    return (wide["gpu"] / wide["dla"]).rename("ratio").reset_index()


def paper_pair(device: KnownDevice, task: Task) -> pd.DataFrame:
    """The two configurations that the paper's summary names, beside the same arms here.

    The summary names no load for the DLA; full share is taken. Columns ``configuration``,
    ``paper_latency_s``, ``paper_energy_j``, ``paper_power_w`` (their quotient), ``latency_s``,
    ``energy_j``, ``power_w``.
    """
    paper = pd.read_csv(paths.PAPER / "orin_pair.csv")
    ours = [device.expected(device.space.arm(**levels), task) for levels in PAIR_ARMS]
    table = pd.DataFrame(
        {
            "configuration": ["GPU, 15W, 20 % load", "DLA, 30W"],
            "paper_latency_s": paper["latency_s"],
            "paper_energy_j": paper["energy_j"],
            "latency_s": [measurement.latency_s for measurement in ours],
            "energy_j": [measurement.energy_j for measurement in ours],
        }
    )
    table.insert(3, "paper_power_w", table["paper_energy_j"] / table["paper_latency_s"])
    table["power_w"] = table["energy_j"] / table["latency_s"]
    return table
