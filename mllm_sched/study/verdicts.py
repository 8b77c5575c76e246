"""Does a verdict hang on a choice that the paper left open? Every claim under every reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mllm_sched.study.claim_file import load_claims
from mllm_sched.study.plots import titled
from mllm_sched.study.readings import Reading
from mllm_sched.study.spread import spread

COLOURS = {"reproduced": "#029e73", "partly": "#ece133", "not reproduced": "#d55e00"}


def under(
    groups: Sequence[Sequence[Reading]], n_jobs: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every claim under each of its readings.

    A reading that leaves every number as it is cannot change a verdict, and is not counted.

    Parameters
    ----------
    groups
        Of ``all_readings``: each begins with its experiment as it is.

    Returns
    -------
    The verdicts: ``id``, ``reading``, ``verdict``. And the numbers behind them: ``experiment``
    (its first claim), ``reading``, ``key``, ``value``, ``low``, ``high``, ``n``.
    """
    jobs = [(reading,) for group in groups for reading in group]
    done = iter(spread(_numbers, jobs, label="readings", n_jobs=n_jobs))
    verdicts, tables = [], []
    for group in groups:
        base, *others = numbers = [next(done) for _ in group]
        for reading, table in zip(group[1:], others, strict=True):
            verdicts += [(*row, reading.label) for row in _judged(reading, table, base)]
        for reading, table in zip(group, numbers, strict=True):
            label = {"experiment": reading.claims[0], "reading": reading.label}
            tables.append(table.reset_index().drop(columns="evidence").assign(**label))
    judged = pd.DataFrame(verdicts, columns=["id", "verdict", "reading"])
    return judged[["id", "reading", "verdict"]], pd.concat(tables, ignore_index=True)


def _numbers(reading: Reading) -> pd.DataFrame:
    return reading.numbers().set_index("key")


def _judged(
    reading: Reading, numbers: pd.DataFrame, base: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    """Verdicts on the claims whose numbers the reading moves."""
    claims = {claim.id: claim for claim in load_claims()}
    for name in reading.claims:
        keys = [test.key for test in claims[name].tests]
        if not np.allclose(numbers.loc[keys, "value"], base.loc[keys, "value"], rtol=1e-9, atol=0):
            yield name, claims[name].verdict(numbers)


def shares(verdicts: pd.DataFrame, own: pd.Series) -> pd.DataFrame:
    """How many readings give which verdict: a row a claim, with its own verdict in front.

    Parameters
    ----------
    verdicts
        Of ``under``.
    own
        The claims' own verdicts, by id.
    """
    counts = verdicts.groupby(["id", "verdict"]).size().unstack(fill_value=0)
    judged = [name for name in own.index if name in counts.index]
    counts = counts.reindex(index=judged, columns=list(COLOURS), fill_value=0)
    counts.insert(0, "own verdict", own.loc[judged])
    return counts


def verdict_bars(counts: pd.DataFrame, *, evidence: str, ax: Axes | None = None) -> Axes:
    """Readings by verdict, one bar a claim; its own verdict is outlined.

    Parameters
    ----------
    counts
        Of ``shares``.
    """
    ax = ax or plt.subplots(figsize=(8.5, 0.42 * len(counts) + 1.4))[1]
    places, left = np.arange(len(counts))[::-1], np.zeros(len(counts))
    for verdict, colour in COLOURS.items():
        width = counts[verdict].to_numpy()
        own = (counts["own verdict"] == verdict).to_numpy()
        for some, edge in ((~own, "white"), (own, "black")):
            shown = some & (width > 0)
            bars = ax.barh(places[shown], width[shown], left=left[shown], color=colour)
            plt.setp(bars.patches, edgecolor=edge, linewidth=1.6)
            ax.bar_label(bars, label_type="center", size="small")
        left += width
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_yticks(places, list(counts.index))
    ax.set(xlabel="readings; the claim's own verdict is outlined")
    ax.grid(axis="y", visible=False)
    names = [Patch(color=colour, label=verdict) for verdict, colour in COLOURS.items()]
    ax.legend(handles=names, loc="lower right", frameon=True)
    return titled(ax, "Verdicts under other readings of the paper", evidence)
