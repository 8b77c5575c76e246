"""What an agent measured, in short: one row for each arm, for agents on other boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched.edge.journal_table import FIRST, LAST, read_journal

RECENT = 20_000  # measurements that are looked at, the last ones
QUANTITIES = ["latency_s", "energy_j"]
OF_A_RUN = {*FIRST, *LAST, *QUANTITIES, "failed", "limit_s"}  # all else says which arm and task


def experience(path: str | Path, recent: int = RECENT) -> pd.DataFrame:
    """Means of the last measurements in a journal, as another board's scheduler takes them in.

    However much was measured, there are no more rows than arms times contexts and modalities, and
    nothing says who asked.

    Parameters
    ----------
    path
        Of the journal.
    recent
        How many measurements to look at.

    Returns
    -------
    pandas.DataFrame
        A table of ``measurement.py``: geometric means of the runs that did not fail; where all
        failed, why the last one did. ``runs`` counts them all.

    Raises
    ------
    JournalError
        If it is damaged.
    """
    table = read_journal(path, last=recent)
    if table.empty:
        return table
    same = [name for name in table if name not in OF_A_RUN]
    rows = [
        {**dict(zip(same, cell, strict=True)), **_merged(runs)}
        for cell, runs in table.groupby(same, sort=False, dropna=False)
    ]
    return pd.DataFrame(rows)


def _merged(runs: pd.DataFrame) -> dict[str, Any]:
    done = runs[runs["failed"] == ""]
    failed = runs["failed"].iloc[-1] if done.empty else ""
    means = np.exp(np.log(done[QUANTITIES].astype(float)).mean())  # NaN of none
    return {**means.to_dict(), "failed": failed, "runs": len(runs)}
