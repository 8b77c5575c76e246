"""Claims of the paper, each with a verdict that is computed.

``claims.yaml`` says what is claimed, and when it counts as reproduced.
Notebooks write ``results/<notebook>/claims.csv``: one row per number, with its interval. This
module puts the two together, into ``results/claims.csv`` and the table in the README.

``python -m mllm_sched.study.claims`` prints and writes; ``--print`` only prints, ``--check`` only
compares.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mllm_sched import paths
from mllm_sched.study.provenance import as_csv

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
COLUMNS = ["id", "claim", "paper", "ours", "n", "evidence", "verdict", "reason", "command"]
NO_NUMBER = {"ours": "", "n": "", "evidence": ""}
VERDICTS = ("reproduced", "partly", "not reproduced", "not testable here", "not run")


@dataclass(frozen=True)
class Condition:
    """On a number: it holds if the whole interval is on the right side.

    Attributes
    ----------
    key
        Row of the notebook's ``claims.csv``.
    at_least, at_most
        Bounds; either may be missing.
    """

    key: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def holds(self, low: float, high: float) -> bool:
        """Whether the interval lies within the bounds."""
        return low >= self.at_least and high <= self.at_most


@dataclass(frozen=True)
class Claim:
    """One row of ``claims.yaml``.

    Attributes
    ----------
    id, claim
        Its name, and what the paper says.
    paper
        The paper's figure, as it prints it.
    notebook
        Which notebook computes our figures; its name without the ending.
    show
        Key of the number that the table shows.
    unit
        How that number is printed: ``percent``, ``count`` or ``ratio``.
    tests
        All hold: reproduced. The first holds, another does not: partly. Else: not reproduced.
    reasons
        A sentence for each verdict that may come out. ``{key}`` stands for a number with its unit.
    untestable, not_run
        Why there is no number, for good or for now; the claim then needs no tests.
    """

    id: str
    claim: str
    paper: str
    notebook: str = ""
    show: str = ""
    unit: str = "percent"
    tests: tuple[Condition, ...] = ()
    reasons: dict[str, str] | None = None
    untestable: str = ""
    not_run: str = ""


def load_claims(path: Path | None = None) -> list[Claim]:
    """Read ``claims.yaml``; ValueError names the claim and what is wrong with it."""
    raw = yaml.safe_load((path or paths.ROOT / "claims.yaml").read_text())
    claims = [_claim(entry) for entry in raw["claims"]]
    ids = [claim.id for claim in claims]
    for name in ids:
        if ids.count(name) > 1:
            raise ValueError(f"claim {name!r} is given twice")
    return claims


def _claim(entry: dict[str, Any]) -> Claim:
    name, known = entry.get("id", "?"), {field.name for field in fields(Claim)}
    unknown = set(entry) - known
    if unknown:
        raise ValueError(f"claim {name!r}: unknown {sorted(unknown)}; expected {sorted(known)}")
    try:
        claim = Claim(
            **{**entry, "tests": tuple(Condition(**test) for test in entry.get("tests", ()))}
        )
    except TypeError as error:
        raise ValueError(f"claim {name!r}: {error}") from None
    if claim.untestable or claim.not_run:
        return claim
    if not (claim.tests and claim.notebook and claim.show):
        raise ValueError(
            f"claim {name!r}: give notebook, show and tests, or untestable, or not_run"
        )
    wanted = {"reproduced", "not reproduced"} | ({"partly"} if len(claim.tests) > 1 else set())
    missing = wanted - set(claim.reasons or {})
    if missing:
        raise ValueError(f"claim {name!r}: no reason for {sorted(missing)}")
    return claim


def evaluate(claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Judge every claim.

    Returns
    -------
    Columns ``id``, ``claim``, ``paper``, ``ours`` (with its interval), ``n``, ``evidence``,
    ``verdict``, ``reason``, ``command``.
    """
    rows = [_judge(claim) for claim in (load_claims() if claims is None else claims)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _judge(claim: Claim) -> dict[str, Any]:
    command = f"make reproduce NOTEBOOKS={claim.notebook}" if claim.notebook else ""
    row = {"id": claim.id, "claim": claim.claim, "paper": claim.paper, "command": command}
    file = paths.RESULTS / claim.notebook / "claims.csv"
    if claim.untestable:
        return {**row, **NO_NUMBER, "verdict": "not testable here", "reason": claim.untestable}
    if claim.not_run or not file.exists():
        reason = claim.not_run or "Its notebook has not been run."
        return {**row, **NO_NUMBER, "verdict": "not run", "reason": reason}
    numbers = pd.read_csv(file).set_index("key")
    missing = [
        key for key in (claim.show, *(t.key for t in claim.tests)) if key not in numbers.index
    ]
    if missing:
        raise ValueError(f"claim {claim.id!r}: {file.name} of {claim.notebook} lacks {missing}")
    verdict = _verdict(claim, numbers)
    shown = numbers.loc[claim.show]
    texts = {key: _number(row, claim.unit, bare=True) for key, row in numbers.iterrows()}
    return {
        **row,
        "ours": _number(shown, claim.unit),
        "n": int(shown["n"]),
        "evidence": shown["evidence"],
        "verdict": verdict,
        "reason": _filled(claim, (claim.reasons or {})[verdict], texts),
    }


def _verdict(claim: Claim, numbers: pd.DataFrame) -> str:
    held = []
    for test in claim.tests:
        row = numbers.loc[test.key]
        low = row["value"] if pd.isna(row["low"]) else row["low"]
        high = row["value"] if pd.isna(row["high"]) else row["high"]
        held.append(test.holds(float(low), float(high)))
    if all(held):
        return "reproduced"
    return "partly" if held[0] else "not reproduced"


def _number(row: pd.Series, unit: str, bare: bool = False) -> str:
    factor, ending = (100.0, " %") if unit == "percent" else (1.0, "")
    form = "{:.0f}" if unit == "count" else "{:.1f}" if unit == "percent" else "{:.2f}"
    value = form.format(row["value"] * factor).replace("-0.0", "0.0")
    if bare or pd.isna(row["low"]) or row["low"] == row["high"]:
        return value + ending
    low, high = (form.format(row[bound] * factor) for bound in ("low", "high"))
    return f"{value}{ending} [{low}, {high}]"


def _filled(claim: Claim, reason: str, texts: dict[Any, str]) -> str:
    """A reason with its numbers; keys hold spaces and commas, so ``str.format`` will not do."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in texts:
            raise ValueError(f"claim {claim.id!r}: no number {match[1]!r} in {claim.notebook}")
        return texts[match[1]]

    return re.sub(r"\{([^}]+)\}", number, reason)


def markdown(table: pd.DataFrame) -> str:
    """The table as the README shows it."""
    lines = ["| claim | paper | ours | evidence | verdict | command |", "|---|---|---|---|---|---|"]
    for row in table.itertuples():
        ours = f"{row.ours}, n = {row.n}" if row.ours and int(row.n) > 1 else row.ours
        command = f"`{row.command}`" if row.command else ""
        verdict = f"**{row.verdict}**. {row.reason}"
        cells = [row.claim, row.paper, ours, row.evidence, verdict, command]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def readme_with(text: str, table: pd.DataFrame) -> str:
    """A README with the table between its markers; ValueError if they are missing."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"README: no {BEGIN} and {END} to put the table between")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{markdown(table)}\n{END}{rest.split(END, 1)[1]}"


def write(table: pd.DataFrame) -> None:
    """Write ``results/claims.csv`` and the README's table."""
    paths.RESULTS.mkdir(exist_ok=True)
    (paths.RESULTS / "claims.csv").write_bytes(as_csv(table))
    readme = paths.ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), table))


def in_step(table: pd.DataFrame) -> bool:
    """Whether the committed table and the README say what the results say."""
    file, readme = paths.RESULTS / "claims.csv", (paths.ROOT / "README.md").read_text()
    return (
        file.exists()
        and file.read_bytes() == as_csv(table)
        and readme == readme_with(readme, table)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts and write them to results/claims.csv and the README."""
    parser = argparse.ArgumentParser(prog="mllm-sched claims", description=main.__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--print", action="store_true", help="write nothing")
    only.add_argument("--check", action="store_true", help="fail if README or results differ")
    options = parser.parse_args(argv)
    table = evaluate()
    columns = ["claim", "paper", "ours", "evidence", "verdict"]
    with pd.option_context("display.max_colwidth", 60, "display.width", 200):
        print(table[columns].to_string(index=False))
    if not options.print and not options.check:
        write(table)
    if options.print or in_step(table):
        return 0
    print("README.md or results/claims.csv differ from the results: run `make claims`")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
