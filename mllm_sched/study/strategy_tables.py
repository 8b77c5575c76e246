"""Tables of the strategies: priced, beside the paper's own, and their effects one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import pandas as pd

from mllm_sched import paths
from mllm_sched.study.strategy_costs import Setting, items_as, modelled

STAGES = ["transmission_ms", "encode_ms", "llm_ms", "total_ms"]
# Tables of strategies: what they are of, to the table and its evidence.
Tables = Mapping[str, tuple[pd.DataFrame, str]]


def cost_table(setting: Setting = Setting(), edges: int = 3) -> pd.DataFrame:
    """All strategies, and the variants of both that send something. Times in milliseconds.

    All Remote sends raw input, an image resized to what its encoder sees, or compressed input;
    hybrid sends float16 or int8, and in its last row encodes on several edge devices at once.
    """
    resized = replace(setting, items=items_as("as the encoder sees it"))
    compressed = replace(setting, items=items_as("compressed"))
    narrow = replace(setting, wire="int8")
    rows = {
        "all-edge": modelled("all-edge", setting),
        "all-remote": modelled("all-remote", setting),
        "all-remote, resized": modelled("all-remote", resized),
        "all-remote, compressed": modelled("all-remote", compressed),
        "hybrid, float16": modelled("hybrid", replace(setting, wire="float16")),
        "hybrid, int8": modelled("hybrid", narrow),
        f"hybrid, int8, {edges} edges": modelled("hybrid", replace(narrow, edges=edges)),
    }
    costs = [asdict(replace(cost, strategy=name)) for name, cost in rows.items()]
    return in_ms(pd.DataFrame(costs))


def in_ms(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that end in ``_s`` as ``_ms``."""
    seconds = [name for name in table if str(name).endswith("_s")]
    named = {name: f"{str(name)[:-2]}_ms" for name in seconds}
    return table.assign(**{name: 1000 * table[name] for name in seconds}).rename(columns=named)


def paper_table() -> pd.DataFrame:
    """The paper's own table, in milliseconds; its names are those used here."""
    table = pd.read_csv(paths.PAPER / "strategies.csv")
    names = {"All Edge": "all-edge", "All Remote": "all-remote", "Hybrid Edge": "hybrid"}
    table["strategy"] = table["strategy"].map(names)
    return table.rename(columns={"encoding_ms": "encode_ms"})


def beside(tables: Tables) -> pd.DataFrame:
    """Tables of strategies under each other, and each total as a ratio to its own All Remote.

    Parameters
    ----------
    tables
        Name to a table with ``strategy`` and the stages in milliseconds, and its evidence.
    """
    rows = {}
    for name, (table, evidence) in tables.items():
        stages = table.set_index("strategy")[STAGES]
        remote = stages.loc["all-remote", "total_ms"]
        rows[f"{name} ({evidence})"] = stages.assign(ratio=stages["total_ms"] / remote)
    return pd.concat(rows, names=["times", "strategy"])


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """The effects that hide in hybrid, one after the other.

    Parameters
    ----------
    table
        The paper's, or one of our own whose last row is hybrid in int8 on several edges.

    Returns
    -------
    Columns ``step`` and ``total_ms``. Of the paper: All Remote; hybrid, if it encoded as slowly as
    All Edge; and hybrid as it is. Of ours, the type on the wire is a step of its own.
    """
    rows = table.set_index("strategy")
    total = rows["total_ms"]
    steps = {"all-remote": total["all-remote"]}
    if "hybrid" in rows.index:
        lost_ms = rows.loc["all-edge", "encode_ms"] - rows.loc["hybrid", "encode_ms"]
        steps["features, encoded as slowly as in all-edge"] = total["hybrid"] + lost_ms
    else:
        steps["features in float16, one edge"] = total["hybrid, float16"]
        steps["in int8"] = total["hybrid, int8"]
    steps["and faster encoding"] = total.iloc[-1]
    return pd.DataFrame({"step": list(steps), "total_ms": list(steps.values())})


def effects_of(tables: Tables) -> Tables:
    """The ``effects`` in every table; names and evidence stay."""
    return {name: (effects(table), evidence) for name, (table, evidence) in tables.items()}


def implied_mbit_s(transmission_ms: float, sent_bytes: float) -> float:
    """The link rate at which so many bytes take so long.

    Examples
    --------
    >>> round(implied_mbit_s(5500, 1080 * 1920 * 3), 1)
    9.0
    """
    return 8 * sent_bytes / (transmission_ms / 1000) / 1e6
