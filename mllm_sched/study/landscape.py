"""The arms of a board side by side: what each costs, and where more power buys less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from mllm_sched import paths
from mllm_sched.devices import KnownDevice
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.tasks import Task

# Columns of ``energy_accounts``, and what the simulated board calls them.
ACCOUNTS = {"marginal": "marginal", "total": "total", "with_tenants": "tenants"}


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


def pareto_front(board: pd.DataFrame) -> pd.Series:
    """Arms than which no other is both as quick and as cheap, and better in one.

    Parameters
    ----------
    board
        Columns ``latency_s`` and ``energy_j``, as of ``arm_table``.

    Examples
    --------
    >>> pareto_front(pd.DataFrame({"latency_s": [1, 2, 3], "energy_j": [5, 6, 4]})).tolist()
    [True, False, True]
    """
    slow, dear = board["latency_s"].to_numpy(), board["energy_j"].to_numpy()
    as_good = (slow[:, None] <= slow) & (dear[:, None] <= dear)
    better = as_good & ((slow[:, None] < slow) | (dear[:, None] < dear))
    return pd.Series(~better.any(axis=0), index=board.index)


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


def non_monotone(table: pd.DataFrame, along: str, quantity: str) -> int:
    """Curves along a factor, all else held, that rise somewhere and fall elsewhere.

    Parameters
    ----------
    table
        Of ``arm_table``, one encoder or several.
    """
    names = ("encoder", "component", "power_w", "load")
    others = [name for name in names if name in table and name != along]
    steps = table.sort_values(along).groupby(others)[quantity].apply(lambda v: v.diff().dropna())
    signs = steps.groupby(level=list(range(len(others)))).agg(["min", "max"])
    return int(((signs["min"] < 0) & (signs["max"] > 0)).sum())


def count_reversals(table: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Reversals of latency and energy along each factor, per encoder.

    Returns
    -------
    Columns ``encoder``, ``factor``, ``quantity``, ``reversals`` (how many), ``largest`` (relative
    rise; NaN if there is none).
    """
    rows = []
    for factor in factors:
        for quantity in ("latency_s", "energy_j"):
            for encoder, part in table.groupby("encoder", sort=False):
                steps = reversals(part, factor, quantity)
                rows.append((encoder, factor, quantity, len(steps), steps["change"].max()))
    return pd.DataFrame(rows, columns=["encoder", "factor", "quantity", "reversals", "largest"])


def claim_numbers(
    table: pd.DataFrame, ratio: pd.DataFrame, pair: pd.DataFrame, *, evidence: str
) -> pd.DataFrame:
    """The numbers that claims refer to, by ``key``.

    Parameters
    ----------
    table, ratio, pair
        Of ``arm_table``, ``dla_over_gpu`` and ``paper_pair``.
    """
    share, background, dla = (pair.iloc[row] for row in range(3))
    numbers = {
        "energy over power": non_monotone(table, "power_w", "energy_j"),
        "latency over power": non_monotone(table, "power_w", "latency_s"),
        "energy over load": non_monotone(table, "load", "energy_j"),
        "latency over load": non_monotone(table, "load", "latency_s"),
        "DLA over GPU, least": ratio["ratio"].min(),
        "DLA over GPU, mean": ratio["ratio"].mean(),
        "pair latency, load as share": dla["latency_s"] / share["latency_s"],
        "pair energy, load as share": dla["energy_j"] / share["energy_j"],
        "pair latency, load as background": dla["latency_s"] / background["latency_s"],
        "pair energy, load as background": dla["energy_j"] / background["energy_j"],
    }
    table = pd.DataFrame({"key": list(numbers), "value": list(numbers.values())})
    return table.assign(low=float("nan"), high=float("nan"), n=1, evidence=evidence)


def energy_accounts(encoders: Sequence[str], modalities: Sequence[str]) -> pd.DataFrame:
    """Energy of every arm under each account of the simulated board.

    Columns: the arm, ``encoder``, and in joules ``marginal`` (idle-subtracted), ``total`` (the
    module while the task runs), ``with_tenants`` (others keep the rest of the component busy).
    """
    tables = []
    for encoder, modality in zip(encoders, modalities, strict=True):
        task = Task(modality, encoder)
        table = arm_table(SimulatedOrin(), task).drop(columns=["latency_s", "energy_j", "evidence"])
        for column, accounting in ACCOUNTS.items():
            table[column] = SimulatedOrin(accounting=accounting).expected_all(task).energy_j
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def dla_over_gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Tasks per joule of the DLA over the GPU at full share, by encoder and power level."""
    full = table[table["load"] == table["load"].max()]
    wide = full.pivot(index=["encoder", "power_w"], columns="component", values="energy_j")
    return (wide["gpu"] / wide["dla"]).rename("ratio").reset_index()


def paper_pair(device: KnownDevice, task: Task) -> pd.DataFrame:
    """The two configurations that the paper's summary names, beside the same ones here.

    "20 % load" is read both ways: as the share the encoder gets, and as the share others take. For
    the DLA the summary names no load; it is taken to be free.

    Returns
    -------
    Columns ``configuration``, ``paper_latency_s``, ``paper_energy_j``, ``latency_s``,
    ``energy_j``, and ``paper_power_w`` and ``power_w``, their quotients.
    """
    gpu, dla = pd.read_csv(paths.PAPER / "orin_pair.csv").to_dict("records")
    busy = replace(task, background_load=0.2)
    rows = [
        ("GPU, 15W, the encoder gets 20 %", gpu, ("gpu", 15, 0.2), task),
        ("GPU, 15W, others take 20 %", gpu, ("gpu", 15, 1.0), busy),
        ("DLA, 30W", dla, ("dla", 30, 1.0), task),
    ]
    table = []
    for name, printed, (component, power_w, load), kind in rows:
        ours = device.expected(
            device.space.arm(component=component, power_w=power_w, load=load), kind
        )
        table.append(
            (name, printed["latency_s"], printed["energy_j"], ours.latency_s, ours.energy_j)
        )
    columns = ["configuration", "paper_latency_s", "paper_energy_j", "latency_s", "energy_j"]
    frame = pd.DataFrame(table, columns=columns).set_index("configuration")
    frame["paper_power_w"] = frame["paper_energy_j"] / frame["paper_latency_s"]
    frame["power_w"] = frame["energy_j"] / frame["latency_s"]
    return frame
