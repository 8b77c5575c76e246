"""What is said of a run: energy, latency, violations, regret; with intervals over seeds.

Violations are counted on the true mean latency of the arm (``violations``) and on the latency
that was observed (``observed_violations``). Near the limit noise alone breaches it.

Regret of a task is the true energy of the arm less that of the best arm within the limits. A task
beyond the limit earns no credit for the energy it saved by that: its regret is at least 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 2000


def per_run(table: pd.DataFrame, limits: Mapping[str, float], start: int = 0) -> pd.DataFrame:
    """One row per scheduler and seed.

    Parameters
    ----------
    table
        Of ``run`` or ``sweep``.
    limits
        As the schedulers had them; ``latency_s`` must be among them.
    start
        First task that counts.

    Returns
    -------
    Columns ``energy_j`` and ``latency_s`` (means per task), ``energy_over_oracle``, ``violations``
    and ``observed_violations`` (shares of tasks), ``regret_j`` (sum), ``switches`` (share of tasks
    whose arm differs from the one before), ``failures`` (share).
    """
    limit = limits["latency_s"]
    table = table[table["step"] >= start]
    table = table.assign(
        violations=np.where(
            table["true_latency_s"].isna(), np.nan, table["true_latency_s"] > limit
        ),
        observed_violations=~(table["latency_s"] <= limit),  # a failed task did not meet it
        regret_j=regret(table),
        comparable_j=table["oracle_energy_j"].where(table["true_energy_j"].notna()),
        failures=table["failed"] != "",
        switches=table["arm"].ne(table.groupby(["scheduler", "seed"], observed=True)["arm"].shift())
        & (table["step"] > start),
    )
    groups = table.groupby(["scheduler", "seed"], observed=True)
    shares = ["energy_j", "latency_s", "violations", "observed_violations", "switches", "failures"]
    runs = groups[shares].mean()
    runs["energy_over_oracle"] = groups["true_energy_j"].sum(min_count=1) / groups[
        "comparable_j"
    ].sum(min_count=1)
    runs["regret_j"] = groups["regret_j"].sum(min_count=1)
    return runs.reset_index()


def regret(table: pd.DataFrame) -> pd.Series:
    """Regret of every task in joules; see the head of this module."""
    return (table["true_energy_j"] - table["oracle_energy_j"]).clip(lower=0.0)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every column of ``per_run``, with a bootstrap interval of 95 %.

    Returns
    -------
    Long table: ``scheduler``, ``quantity``, ``value``, ``low``, ``high``, ``n`` (seeds).
    """
    quantities = [name for name in runs.columns if name not in ("scheduler", "seed")]
    rows = []
    for scheduler, group in runs.groupby("scheduler", observed=True, sort=False):
        for quantity in quantities:
            rows.append(
                (scheduler, quantity, *mean_interval(group[quantity].to_numpy()), len(group))
            )
    table = pd.DataFrame(rows, columns=["scheduler", "quantity", "value", "low", "high", "n"])
    table["scheduler"] = pd.Categorical(table["scheduler"], runs["scheduler"].cat.categories)
    return table


def mean_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval; NaN bounds for a single value."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    if np.ptp(values) == 0 or np.isnan(values).any():
        return mean, mean, mean
    low, high = _bounds(values, seed)
    return mean, float(low), float(high)


def highest(rows: pd.DataFrame) -> tuple[float, float, float, int]:
    """The row of greatest value; its interval reaches to the greatest bound of any row.

    So that a bound which holds for it holds for all of them.

    Parameters
    ----------
    rows
        Columns ``value``, ``low``, ``high``, ``n``.

    Returns
    -------
    ``value``, ``low``, ``high``, ``n``.
    """
    worst = rows.iloc[int(rows["value"].argmax())]
    bounds = float(worst["low"]), float(rows[["value", "high"]].max(axis=None))
    return float(worst["value"]), *bounds, int(worst["n"])


def lowest(rows: pd.DataFrame) -> tuple[float, float, float, int]:
    """The row of least value; its interval reaches to the least bound of any row."""
    worst = rows.iloc[int(rows["value"].argmin())]
    bounds = float(rows[["value", "low"]].min(axis=None)), float(worst["high"])
    return float(worst["value"]), *bounds, int(worst["n"])


def _bounds(values: NDArray[np.float64], seed: int = 0) -> tuple[NDArray, NDArray]:
    """Bounds of the mean over the last axis; percentiles, so they stay within the data."""
    result = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def savings(runs: pd.DataFrame, ours: str, quantity: str = "energy_j") -> pd.DataFrame:
    """How much less one scheduler takes than every other, paired by seed.

    Returns
    -------
    One row per other scheduler: ``scheduler``, ``value`` = mean of 1 - ours / other, ``low``,
    ``high``, ``n``.
    """
    wide = runs.pivot(index="seed", columns="scheduler", values=quantity)
    if ours not in wide:
        raise ValueError(f"{ours!r} did not run; there are {', '.join(map(str, wide.columns))}")
    rows = []
    for other in wide.columns:
        if other != ours:
            saved = (1.0 - wide[ours] / wide[other]).to_numpy()
            rows.append((other, *mean_interval(saved), len(saved)))
    table = pd.DataFrame(rows, columns=["scheduler", "value", "low", "high", "n"])
    return table.assign(scheduler=pd.Categorical(table["scheduler"], wide.columns))


def curves(table: pd.DataFrame, values: pd.Series, points: int = 50) -> pd.DataFrame:
    """A quantity over the course of a run.

    Parameters
    ----------
    table
        Of ``run`` or ``sweep``.
    values
        The quantity of every row of it.
    points
        The tasks are cut into at most this many blocks, and averaged within.

    Returns
    -------
    ``scheduler``, ``step`` (end of the block), ``value`` (mean over seeds), and ``low`` and
    ``high``: its bootstrap interval of 95 %, or the value itself for a single seed.
    """
    steps = int(table["step"].max()) + 1
    size = max(1, -(-steps // points))
    ends = ((table["step"] // size + 1) * size).clip(upper=steps).rename("step")
    blocks = values.groupby([table["scheduler"], ends, table["seed"]], observed=True).mean()
    parts = []
    for scheduler, group in blocks.groupby("scheduler", observed=True, sort=False):
        wide = group.droplevel("scheduler").unstack("seed")
        low, high = _bounds(wide.to_numpy()) if wide.shape[1] > 1 else (wide.mean(axis=1),) * 2
        part = {"step": wide.index, "value": wide.mean(axis=1), "low": low, "high": high}
        parts.append(pd.DataFrame(part).assign(scheduler=scheduler))
    result = pd.concat(parts, ignore_index=True)
    result["scheduler"] = pd.Categorical(result["scheduler"], table["scheduler"].cat.categories)
    return result


def running_mean(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Mean of a quantity from the first task of its run up to every task, missing ones left out."""
    key = [table["scheduler"], table["seed"]]
    counted = values.notna().groupby(key, observed=True).cumsum()
    return values.groupby(key, observed=True).cumsum() / counted


def running_sum(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Sum of a quantity from the first task of its run up to every task."""
    return values.groupby([table["scheduler"], table["seed"]], observed=True).cumsum()


def with_pooled_truth(table: pd.DataFrame, limits: Mapping[str, float]) -> pd.DataFrame:
    """For a live device: the means of all measurements of an arm stand in for its truth.

    The oracle is then the best arm that anyone tried. The stand-in is as good as the number of
    measurements behind it.
    """
    done = table[table["failed"] == ""]
    means = done.groupby("arm")[["energy_j", "latency_s"]].mean()
    feasible = means[means["latency_s"] <= limits["latency_s"]]
    best = feasible["energy_j"].min() if len(feasible) else np.nan
    return table.assign(
        true_energy_j=table["arm"].map(means["energy_j"]),
        true_latency_s=table["arm"].map(means["latency_s"]),
        oracle_energy_j=best,
    )
