"""The arms of a board side by side: what each costs, and where more power does not help."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mllm_sched import paths
from mllm_sched.devices import KnownDevice
from mllm_sched.tasks import Task


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
    """Whether no other arm is at least as good in latency and energy, and better in one."""
    latency, energy = board["latency_s"].to_numpy(), board["energy_j"].to_numpy()
    as_good = (latency[:, None] <= latency) & (energy[:, None] <= energy)
    better = as_good & ((latency[:, None] < latency) | (energy[:, None] < energy))
    return pd.Series(~better.any(axis=0), index=board.index)


def non_monotone(table: pd.DataFrame, along: str, quantity: str) -> int:
    """Curves along a factor, all else held, that rise somewhere and fall elsewhere."""
    names = ("encoder", "component", "power_w", "load")
    others = [name for name in names if name in table and name != along]
    steps = table.sort_values(along).groupby(others)[quantity].apply(lambda v: v.diff().dropna())
    signs = steps.groupby(level=list(range(len(others)))).agg(["min", "max"])
    return int(((signs["min"] < 0) & (signs["max"] > 0)).sum())


def claim_numbers(
    table: pd.DataFrame, ratio: pd.DataFrame, pair: pd.DataFrame, *, evidence: str
) -> pd.DataFrame:
    """The numbers of claims, from ``arm_table``, ``dla_over_gpu`` and ``paper_pair``."""
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


def dla_over_gpu(table: pd.DataFrame) -> pd.DataFrame:
    """Tasks per joule of the DLA over the GPU at full share, by encoder and power level."""
    full = table[table["load"] == table["load"].max()]
    wide = full.pivot(index=["encoder", "power_w"], columns="component", values="energy_j")
    return (wide["gpu"] / wide["dla"]).rename("ratio").reset_index()


def paper_pair(device: KnownDevice, task: Task) -> pd.DataFrame:
    """The two configurations that the paper's summary names, beside the same ones here.

    "20 % load" is read both ways: as the share the encoder gets, and as the share others take. For
    the DLA the summary names no load; it is taken to be free. Indexed by ``configuration``.
    """
    gpu, dla = pd.read_csv(paths.PAPER / "orin_pair.csv").to_dict("records")
    busy = replace(task, background_load=0.2)
    rows = {}
    for name, paper, (component, power_w, load), asked in [
        ("GPU, 15W, the encoder gets 20 %", gpu, ("gpu", 15, 0.2), task),
        ("GPU, 15W, others take 20 %", gpu, ("gpu", 15, 1.0), busy),
        ("DLA, 30W", dla, ("dla", 30, 1.0), task),
    ]:
        arm = device.space.arm(component=component, power_w=power_w, load=load)
        ours = device.expected(arm, asked)
        rows[name] = {
            "paper_latency_s": paper["latency_s"],
            "paper_energy_j": paper["energy_j"],
            "latency_s": ours.latency_s,
            "energy_j": ours.energy_j,
            "paper_power_w": paper["energy_j"] / paper["latency_s"],
            "power_w": ours.energy_j / ours.latency_s,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")
