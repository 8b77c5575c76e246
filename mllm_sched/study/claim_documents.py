"""Parts of README and REPORT that are generated from the verdicts; see ``claims``."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

VERDICTS = ("reproduced", "partly", "not reproduced", "not testable here", "not run")


def markdown(table: pd.DataFrame) -> str:
    """The table as the documents show it."""
    names = [
        "claim",
        "paper",
        "ours",
        "evidence",
        "verdict",
        "same under other readings",
        "command",
    ]
    rows = []
    for row in table.itertuples():
        ours = f"{row.ours}, n = {row.n}" if row.ours and int(row.n) > 1 else row.ours
        command = f"`{row.command}`" if row.command else ""
        verdict = f"**{row.verdict}**. {row.reason}"
        rows.append([row.claim, row.paper, ours, row.evidence, verdict, row.readings, command])
    return as_markdown(pd.DataFrame(rows, columns=names))


def criteria(table: pd.DataFrame) -> str:
    """What was compared, and what our number had to be."""
    columns = ["id", "metric", "paper", "asked", "ours", "evidence", "verdict"]
    return as_markdown(table[columns])


def by_reading(table: pd.DataFrame, readings: pd.DataFrame) -> str:
    """For every claim: its verdict, and under which readings it is another."""
    rows = []
    for row in table[table["readings"] != ""].itertuples():
        own = readings[readings["id"] == row.id]
        groups = own[own["verdict"] != row.verdict].groupby("verdict", sort=False)["reading"]
        others = [f"**{verdict}**: {'; '.join(which)}" for verdict, which in groups]
        rows.append([row.claim, row.verdict, row.readings, ". ".join(others) or "none"])
    names = ["claim", "verdict", "same under", "another verdict under"]
    return as_markdown(pd.DataFrame(rows, columns=names))


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; cells as they are."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    texts = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([texts[0], texts[1].replace(" ", ""), *texts[2:]])


def blocks(table: pd.DataFrame, readings: pd.DataFrame) -> dict[str, str]:
    """Generated parts of the documents, by name.

    Parameters
    ----------
    table
        Of ``claims.evaluate``.
    readings
        Of ``claims.other_readings``.
    """
    counts = table["verdict"].value_counts()
    said = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts]
    lists = {verdict.replace(" ", "_"): _listed(table, verdict) for verdict in VERDICTS}
    return {
        **lists,
        "claims": markdown(table),
        "criteria": criteria(table),
        "readings": by_reading(table, readings),
        "verdicts": f"Of {len(table)} claims: {', '.join(said)}.",
    }


def _listed(table: pd.DataFrame, verdict: str) -> str:
    """Claims with a verdict, one a line, with the evidence there is."""
    rows = table[table["verdict"] == verdict]
    lines = [
        f"- {row.claim}" + (f" ({row.evidence}: {row.ours})" if row.evidence else "")
        for row in rows.itertuples()
    ]
    return "\n".join(lines) or "- none"


def with_blocks(text: str, made: Mapping[str, str]) -> str:
    """A document with its generated parts between their markers.

    ``<!-- claims:begin -->`` and ``<!-- claims:end -->`` hold the part called ``claims``. Raises
    ValueError for a marker of an unknown part, or one that does not end.
    """
    for name in re.findall(r"<!-- (\w+):begin -->", text):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if name not in made:
            raise ValueError(f"no generated part {name!r}; there are {', '.join(made)}")
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"{begin} has no {end}")
        text = f"{head}{begin}\n{made[name]}\n{end}{rest.split(end, 1)[1]}"
    return text
