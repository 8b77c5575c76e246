"""What a year's bill is computed from: every scheduler, encoder, limit and seed, played once.

A run becomes one row: sums over its first tasks at some counts, and means over its second half,
when it has learnt. Sums are of energy, of tasks truly beyond the limit, and of seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.devices import KnownDevice, open_device
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.study.lineup import full_power_arms
from mllm_sched.study.runner import Rule
from mllm_sched.study.stability import lineup
from mllm_sched.study.sweep import sweep
from mllm_sched.tasks import Task

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
        who = (rules or lineup)(device, task)
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
