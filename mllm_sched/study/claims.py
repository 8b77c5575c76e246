"""Claims of the paper, each with a verdict that is computed.

``claims.yaml`` says what is claimed, and when it counts as reproduced; see ``claim_file``.
Notebooks write ``results/<notebook>/claims.csv``: one row per number, with its interval. This
module puts the two together, into ``results/claims.csv`` and the tables of README and REPORT.

``python -m mllm_sched.study.claims`` prints and writes; ``--print`` only prints, ``--check`` only
compares.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mllm_sched import paths
from mllm_sched.files import write_whole
from mllm_sched.study.claim_documents import blocks, with_blocks
from mllm_sched.study.claim_file import Claim, Condition, load_claims
from mllm_sched.study.provenance import as_csv

DOCUMENTS = ("README.md", "REPORT.md")
COLUMNS = [
    *("id", "claim", "paper", "metric", "asked", "ours", "n", "evidence"),
    *("verdict", "reason", "readings", "command"),
]
NO_NUMBER = {"ours": "", "n": "", "evidence": "", "asked": "", "readings": ""}
READINGS = "13_sensitivity/verdicts.csv"
FORMATS = {
    "percent": (100.0, "{:.1f}", " %"),
    "count": (1.0, "{:.0f}", ""),
    "ratio": (1.0, "{:.3f}", ""),
    "seconds": (1.0, "{:.2f}", " s"),
    "joules": (1.0, "{:.1f}", " J"),
}


def evaluate(claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Judge every claim.

    Returns
    -------
    Columns ``id``, ``claim``, ``paper``, ``metric``, ``asked`` (what our number must be), ``ours``
    (with its interval), ``n``, ``evidence``, ``verdict``, ``reason``, ``readings`` (how many of the
    other readings of the paper give the same verdict), ``command``.
    """
    readings = other_readings()
    rows = [_judge(claim, readings) for claim in (load_claims() if claims is None else claims)]
    return pd.DataFrame(rows, columns=COLUMNS)


def other_readings() -> pd.DataFrame:
    """Verdicts under other readings of the paper: ``id``, ``reading``, ``verdict``."""
    file = paths.RESULTS / READINGS
    return (
        pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["id", "reading", "verdict"])
    )


def _judge(claim: Claim, readings: pd.DataFrame) -> dict[str, Any]:
    command = f"make reproduce NOTEBOOKS={claim.notebook}" if claim.notebook else ""
    row = {"command": command}
    row |= {name: getattr(claim, name) for name in ("id", "claim", "paper", "metric")}
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
    shown, verdict = numbers.loc[claim.show], claim.verdict(numbers)
    wanted = {test.key: test.evidence or claim.evidence for test in claim.tests}
    for key, evidence in {claim.show: claim.evidence, **wanted}.items():
        # On a table of one's own numbers are what they are; the row says what.
        if numbers.loc[key, "evidence"] != evidence and paths.RESULTS == paths.COMMITTED:
            raise ValueError(
                f"claim {claim.id!r}: {key!r} is {numbers.loc[key, 'evidence']}, "
                f"but claims.yaml says {evidence}"
            )
    return {
        **row,
        "asked": _asked(claim),
        "ours": _number(shown, claim.unit),
        "n": int(shown["n"]),
        "evidence": shown["evidence"],
        "verdict": verdict,
        "reason": _filled(claim, (claim.reasons or {})[verdict], numbers),
        "readings": _compared(verdict, readings[readings["id"] == claim.id]),
    }


def _compared(verdict: str, readings: pd.DataFrame) -> str:
    """How many readings agree; of other seeds it is said by name if they do not."""
    if readings.empty:
        return ""
    same = readings["verdict"] == verdict
    text = f"{same.sum()} of {len(readings)}"
    seeds = readings["reading"] == "other seeds"
    return text if same[seeds].all() else f"{text}; changes with the seeds"


def _asked(claim: Claim) -> str:
    low, high = (_printed(bound, claim.unit) for bound in claim.bounds)
    if claim.direction == "close to":
        return f"{low} to {high}"
    return f"{claim.direction} {low if claim.direction == 'at least' else high}"


def _printed(value: float, unit: str, ending: bool = True) -> str:
    factor, form, mark = FORMATS[unit]
    if math.isinf(value):
        return ""
    text = form.format(value * factor)
    text = text.removeprefix("-") if float(text) == 0 else text
    return text + mark if ending else text


def _number(row: pd.Series, unit: str) -> str:
    value = _printed(row["value"], unit)
    if pd.isna(row["low"]) or row["low"] == row["high"]:
        return value
    low, high = (_printed(row[bound], unit, ending=False) for bound in ("low", "high"))
    return f"{value} [{low}, {high}]"


def _filled(claim: Claim, reason: str, numbers: pd.DataFrame) -> str:
    """A reason with its numbers; keys hold spaces and commas, so ``str.format`` will not do.

    ``{key|unit}`` prints a number in another unit than the claim's.
    """

    def number(match: re.Match[str]) -> str:
        key, _, unit = match[1].partition("|")
        if key not in numbers.index:
            raise ValueError(f"claim {claim.id!r}: no number {key!r} in {claim.notebook}")
        return _printed(numbers.loc[key, "value"], unit or claim.unit)

    failed = "; ".join(_missed(claim, test, numbers) for test in claim.failed(numbers))
    return re.sub(r"\{([^}]+)\}", number, reason.replace("{failed}", failed))


def _missed(claim: Claim, test: Condition, numbers: pd.DataFrame) -> str:
    """A condition that does not hold, with our number."""
    return f"{test.key} is {_printed(numbers.loc[test.key, 'value'], test.unit or claim.unit)}"


def _documents(table: pd.DataFrame) -> dict[Path, str]:
    """Every document as it should read."""
    made = blocks(table, other_readings())
    files = [paths.ROOT / name for name in DOCUMENTS]
    return {file: with_blocks(file.read_text(), made) for file in files}


def write(table: pd.DataFrame) -> None:
    """Write ``results/claims.csv`` and the generated parts of the documents.

    Raises ValueError where other results than the committed ones were judged.
    """
    if paths.RESULTS != paths.COMMITTED:
        raise ValueError(
            f"these verdicts are on {paths.RESULTS}: documents tell those on {paths.COMMITTED} "
            "alone; --print writes nothing"
        )
    documents = _documents(table)  # refused before anything is written
    paths.RESULTS.mkdir(exist_ok=True)
    write_whole(paths.RESULTS / "claims.csv", as_csv(table))
    for file, text in documents.items():
        if file.read_text() != text:
            write_whole(file, text.encode())


def in_step(table: pd.DataFrame) -> bool:
    """Whether the committed table and the documents say what the results say."""
    file = paths.RESULTS / "claims.csv"
    there = file.exists() and file.read_bytes() == as_csv(table)
    return there and all(file.read_text() == text for file, text in _documents(table).items())


def _show(table: pd.DataFrame) -> None:
    columns = ["claim", "paper", "ours", "evidence", "verdict"]
    with pd.option_context("display.max_colwidth", 60, "display.width", 200):
        print(table[columns].to_string(index=False))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts and write them to results/claims.csv, README and REPORT.

    Exit status 1 if something differs that should not, 2 if the claims cannot be judged.
    """
    parser = argparse.ArgumentParser(prog="mllm-sched claims", description=main.__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--print", action="store_true", help="write nothing")
    only.add_argument(
        "--check", action="store_true", help="fail if a document or results/claims.csv differs"
    )
    options = parser.parse_args(argv)
    try:
        table = evaluate()
        _show(table)
        if not options.print and not options.check:
            write(table)
        if options.print or in_step(table):
            return 0
    except (ValueError, OSError, yaml.YAMLError) as error:
        print("mllm-sched claims:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print("results/claims.csv, README.md or REPORT.md differ from the results: run `make claims`")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
