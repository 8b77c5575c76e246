"""Does a verdict hang on a choice that the paper left open? Every claim under every reading."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mllm_sched.study.claim_file import Claim, load_claims
from mllm_sched.study.plots import titled
from mllm_sched.study.readings import Reading
from mllm_sched.study.spread import spread

COLOURS = {"reproduced": "#029e73", "partly": "#ece133", "not reproduced": "#d55e00"}


def under(
    readings: Sequence[Reading], n_jobs: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every claim under each of its readings.

    Returns
    -------
    The verdicts: ``id``, ``reading``, ``verdict``, in the order of the readings. And the numbers
    behind them: ``reading``, ``claims``, ``key``, ``value``, ``low``, ``high``, ``n``.
    """
    claims = {claim.id: claim for claim in load_claims()}
    jobs = [(reading, [claims[name] for name in reading.claims]) for reading in readings]
    done = spread(_judge, jobs, label="readings", n_jobs=n_jobs)
    verdicts = pd.concat([verdict for verdict, _ in done], ignore_index=True)
    numbers = pd.concat([number for _, number in done], ignore_index=True)
    return verdicts, numbers.drop(columns="evidence")


def _judge(reading: Reading, claims: Sequence[Claim]) -> tuple[pd.DataFrame, pd.DataFrame]:
    numbers = reading.numbers()
    indexed = numbers.set_index("key")
    rows = [(claim.id, reading.label, claim.verdict(indexed)) for claim in claims]
    names = ", ".join(claim.id for claim in claims)
    numbers.insert(0, "claims", names)
    numbers.insert(0, "reading", reading.label)
    return pd.DataFrame(rows, columns=["id", "reading", "verdict"]), numbers


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
    counts = counts.reindex(index=verdicts["id"].unique(), columns=list(COLOURS), fill_value=0)
    counts.insert(0, "own verdict", own.loc[counts.index])
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
        edges = ["black" if mine else "white" for mine in own]
        bars = ax.barh(
            places, width, left=left, color=colour, edgecolor=edges, lw=1.6, label=verdict
        )
        ax.bar_label(bars, [f"{n}" if n else "" for n in width], label_type="center", size="small")
        left += width
    ax.set_yticks(places, list(counts.index))
    ax.set(xlabel="readings; the claim's own verdict is outlined")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.06), ncols=3, frameon=False)
    return titled(ax, "Verdicts under other readings of the paper", evidence)
