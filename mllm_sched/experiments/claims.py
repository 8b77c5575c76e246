"""Claims of the paper, each with a verdict that is computed.

``claims.yaml`` says what is claimed, and when it counts as reproduced. Notebooks write
``results/<notebook>/claims.csv``: one row per number, with its interval. This module puts the two
together, into ``results/claims.csv`` and the tables of README and REPORT.

``python -m mllm_sched.experiments.claims`` prints and writes; ``--print`` only prints, ``--check``
only compares.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mllm_sched import paths
from mllm_sched.atomic_io import write_whole
from mllm_sched.experiments.provenance import as_csv

ROUNDING = 1e-12  # 0.2 x 0.8 is a little more than 0.16
UNITS = ("percent", "count", "ratio", "seconds", "joules")
EVIDENCE = ("measured", "simulated", "published", "estimated")
DIRECTIONS = ("at least", "at most", "close to")


@dataclass(frozen=True)
class Condition:
    """On a number: it holds if the whole interval is on the right side.

    Attributes
    ----------
    key
        Row of the notebook's ``claims.csv``.
    at_least, at_most
        Bounds; None stands for what the claim itself asks for.
    unit, evidence
        Of its number, where they are not the claim's.
    """

    key: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    evidence: str = ""

    def holds(self, low: float, high: float, bounds: tuple[float, float]) -> bool:
        """Whether the interval lies within the condition's own bounds, else within the claim's."""
        if self.at_least is not None or self.at_most is not None:
            bounds = (
                -math.inf if self.at_least is None else self.at_least,
                math.inf if self.at_most is None else self.at_most,
            )
        return low >= bounds[0] - ROUNDING and high <= bounds[1] + ROUNDING


@dataclass(frozen=True)
class Claim:
    """One row of ``claims.yaml``.

    Attributes
    ----------
    id, claim
        Its name, and what the paper says.
    paper
        The paper's figure, as it prints it.
    metric
        What is compared, in words.
    value, direction, tolerance
        The paper's figure as a number, ``at least``, ``at most`` or ``close to``, and the share of
        it by which ours may miss it.
    unit
        How numbers are printed: ``percent``, ``count``, ``ratio``, ``seconds`` or ``joules``.
    evidence
        What our number is.
    notebook
        Which notebook computes our figures; its name without the ending.
    show
        Key of the number that the table shows.
    tests
        All hold: reproduced. The first holds, another does not: partly. Else: not reproduced.
    reasons
        A sentence for each verdict that may come out. ``{key}`` stands for a number with its unit,
        ``{failed}`` for the conditions that do not hold.
    untestable, not_run
        Why there is no number, for good or for now; the claim then needs nothing of the above
        but its metric.
    """

    id: str
    claim: str
    paper: str
    metric: str
    value: float = math.nan
    direction: str = ""
    tolerance: float = math.nan
    unit: str = ""
    evidence: str = ""
    notebook: str = ""
    show: str = ""
    tests: tuple[Condition, ...] = ()
    reasons: dict[str, str] | None = None
    untestable: str = ""
    not_run: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """Within what the number must lie.

        Examples
        --------
        >>> claim = Claim("a", "a", "1", "ratio", value=0.5, direction="close to", tolerance=0.25)
        >>> claim.bounds
        (0.4, 0.625)
        """
        low = self.value * (1 - self.tolerance)
        high = self.value * (1 + self.tolerance)
        if self.direction == "close to":
            return self.value / (1 + self.tolerance), high
        return (low, math.inf) if self.direction == "at least" else (-math.inf, high)

    def verdict(self, numbers: pd.DataFrame) -> str:
        """``reproduced``, ``partly`` or ``not reproduced``.

        Parameters
        ----------
        numbers
            Rows of a ``claims.csv``, indexed by ``key``: ``value``, and ``low`` and ``high``, NaN
            for a number without an interval.
        """
        failed = self.failed(numbers)
        if not failed:
            return "reproduced"
        return "not reproduced" if self.tests[0] in failed else "partly"

    def failed(self, numbers: pd.DataFrame) -> list[Condition]:
        """The conditions that do not hold; ValueError names a number that is none."""
        failed = []
        for test in self.tests:
            row = numbers.loc[test.key]
            if not math.isfinite(row["value"]):
                raise ValueError(f"claim {self.id!r}: {test.key!r} is {row['value']}")
            low, high = (
                float(row["value"] if pd.isna(row[bound]) else row[bound])
                for bound in ("low", "high")
            )
            if not test.holds(low, high, self.bounds):
                failed.append(test)
        return failed


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
    if not (claim.untestable or claim.not_run):
        _check(claim)
    return claim


def _check(claim: Claim) -> None:
    """A claim that is judged says by what, how and with what outcome."""
    if not (claim.tests and claim.notebook and claim.show):
        raise ValueError(
            f"claim {claim.id!r}: give notebook, show and tests, or untestable, or not_run"
        )
    said: list[tuple[str, str, tuple[str, ...]]] = [("direction", claim.direction, DIRECTIONS)]
    for one in (claim, *claim.tests):
        for name, allowed in (("unit", UNITS), ("evidence", EVIDENCE)):
            said.append((name, getattr(one, name) or getattr(claim, name), allowed))
    for name, given, known in said:
        if given not in known:
            raise ValueError(
                f"claim {claim.id!r}: {name} {given!r}: expected one of {', '.join(known)}"
            )
    if math.isnan(claim.value) or not claim.tolerance >= 0:
        raise ValueError(f"claim {claim.id!r}: give value, and a tolerance of 0 or more")
    wanted = {"reproduced", "not reproduced"} | ({"partly"} if len(claim.tests) > 1 else set())
    missing = wanted - set(claim.reasons or {})
    if missing:
        raise ValueError(f"claim {claim.id!r}: no reason for {sorted(missing)}")


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


if __name__ == "__main__":
    raise SystemExit(main())
