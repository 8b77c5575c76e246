"""Energy, latency, violations and regret of runs, with bootstrap intervals over seeds.

Violations are counted on the true mean latency of the arm (``violations``) and on the observed one
(``observed_violations``, see ``violated``): near the limit noise alone exceeds it.

The regret of a task is the true energy of its arm minus that of the best arm within the limits,
and at least 0: energy saved by violating a limit is no gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 2000
NUMBER = ["value", "low", "high", "n"]


def per_run(table: pd.DataFrame, limits: Mapping[str, float], start: int = 0) -> pd.DataFrame:
    """One row per scheduler and seed, over the tasks from ``start`` on.

    Columns ``energy_j`` and ``latency_s`` (means per task), ``energy_over_oracle``, ``violations``
    and ``observed_violations`` (shares of tasks), ``regret_j`` (sum), ``switches`` (share of tasks
    whose arm differs from the one before), ``failures`` (share).
    """
    limit = limits["latency_s"]
    table = table[table["step"] >= start]
    true_s = table["true_latency_s"]
    table = table.assign(
        violations=np.where(true_s.isna(), np.nan, true_s > limit),
        observed_violations=violated(table, limit),
        regret_j=regret(table),
        comparable_j=table["oracle_energy_j"].where(table["true_energy_j"].notna()),
        failures=table["failed"] != "",
        switches=table["arm"].ne(table.groupby(["scheduler", "seed"], observed=True)["arm"].shift())
        & (table["step"] > start),
    )
    groups = table.groupby(["scheduler", "seed"], observed=True)
    shares = ["energy_j", "latency_s", "violations", "observed_violations", "switches", "failures"]
    runs = groups[shares].mean()
    sums = groups[["true_energy_j", "comparable_j", "regret_j"]].sum(min_count=1)
    runs["energy_over_oracle"] = sums["true_energy_j"] / sums["comparable_j"]
    runs["regret_j"] = sums["regret_j"]
    return runs.reset_index()


def violated(table: pd.DataFrame, limit_s: float | pd.Series) -> pd.Series:
    """Whether each task was observed to violate the limit on latency.

    A task that has a latency is judged by it, also if something else failed, such as its meter.
    One without a latency violates the limit if it failed.
    """
    latency = table["latency_s"]
    return (latency > limit_s) | (latency.isna() & (table["failed"] != ""))


def regret(table: pd.DataFrame) -> pd.Series:
    """Regret of every task in joules; see the head of this module."""
    return (table["true_energy_j"] - table["oracle_energy_j"]).clip(lower=0.0)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of every column of ``per_run``: ``scheduler``, ``quantity``, ``NUMBER``."""
    rows = [
        (scheduler, quantity, *mean_interval(group[quantity].to_numpy()), len(group))
        for scheduler, group in runs.groupby("scheduler", observed=True, sort=False)
        for quantity in runs.columns.drop(["scheduler", "seed"])
    ]
    table = pd.DataFrame(rows, columns=["scheduler", "quantity", *NUMBER])
    table["scheduler"] = pd.Categorical(table["scheduler"], runs["scheduler"].cat.categories)
    return table


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval; NaN bounds for a single value."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    if np.ptp(values) == 0 or np.isnan(values).any():
        return mean, mean, mean
    low, high = _bounds(values)
    return mean, float(low), float(high)


def highest(rows: pd.DataFrame) -> tuple[float, float, float, int]:
    """The row of greatest value; its interval reaches to the greatest bound of any row."""
    worst = rows.iloc[int(rows["value"].argmax())]
    bounds = float(worst["low"]), float(rows[["value", "high"]].max(axis=None))
    return float(worst["value"]), *bounds, int(worst["n"])


def lowest(rows: pd.DataFrame) -> tuple[float, float, float, int]:
    """The same of the row of least value; its interval reaches to the least bound of any row."""
    worst = rows.iloc[int(rows["value"].argmin())]
    bounds = float(rows[["value", "low"]].min(axis=None)), float(worst["high"])
    return float(worst["value"]), *bounds, int(worst["n"])


def claim_table(
    rows: Iterable[tuple[str, float, float, float, int]], evidence: str
) -> pd.DataFrame:
    """Numbers as ``claims.csv`` holds them: ``key``, ``value``, ``low``, ``high``, ``n``."""
    return pd.DataFrame(list(rows), columns=["key", *NUMBER]).assign(evidence=evidence)


def _bounds(values: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Bounds of the mean over the last axis; percentiles, so they stay within the data."""
    result = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def savings(runs: pd.DataFrame, ours: str, quantity: str = "energy_j") -> pd.DataFrame:
    """Mean of 1 - ours / other over seeds, one row per other scheduler, with its interval."""
    wide = runs.pivot(index="seed", columns="scheduler", values=quantity)
    rows = []
    for other in wide.columns.drop(ours):
        saved = (1.0 - wide[ours] / wide[other]).to_numpy()
        rows.append((other, *mean_interval(saved), len(saved)))
    table = pd.DataFrame(rows, columns=["scheduler", *NUMBER])
    return table.assign(scheduler=pd.Categorical(table["scheduler"], wide.columns))


def curves(table: pd.DataFrame, values: pd.Series, points: int = 50) -> pd.DataFrame:
    """A quantity over the course of a run, averaged within at most ``points`` blocks of tasks.

    ``values`` holds the quantity of every row of ``table``. Returns ``scheduler``, ``step`` (end of
    the block), and ``value``, ``low``, ``high`` over seeds; the bounds of one seed are its value.
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
