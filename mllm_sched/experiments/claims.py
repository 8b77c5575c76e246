"""Claims of the paper, each with a verdict that is computed.

``claims.yaml`` says what is claimed, and when it counts as reproduced. Notebooks write
``results/<notebook>/claims.csv``: one row per number, with its interval. From both come
``results/claims.csv`` and the generated parts of README and REPORT.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from mllm_sched import paths
from mllm_sched.atomic_io import write_whole
from mllm_sched.experiments.provenance import as_csv
from mllm_sched.measurement import Evidence

ROUNDING = 1e-12  # 0.2 x 0.8 is a little more than 0.16
VERDICTS = ("reproduced", "partly", "not reproduced", "not testable here", "not run")
DOCUMENTS = ("README.md", "REPORT.md")
FORMATS = {
    "percent": (100.0, "{:z.1f}", " %"),
    "count": (1.0, "{:z.0f}", ""),
    "ratio": (1.0, "{:z.3f}", ""),
    "seconds": (1.0, "{:z.2f}", " s"),
    "joules": (1.0, "{:z.1f}", " J"),
}
Unit = Literal["percent", "count", "ratio", "seconds", "joules"]


class Condition(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Holds if the whole interval of the number ``key`` is within its bounds, or the claim's."""

    key: str
    at_least: float | None = None
    at_most: float | None = None
    unit: Unit | None = None  # likewise, where it is not the claim's
    evidence: Evidence | None = None

    def holds(self, low: float, high: float, bounds: tuple[float, float]) -> bool:
        """Whether the interval lies within the condition's own bounds, else the claim's."""
        if self.at_least is not None or self.at_most is not None:
            bounds = (
                -math.inf if self.at_least is None else self.at_least,
                math.inf if self.at_most is None else self.at_most,
            )
        return low >= bounds[0] - ROUNDING and high <= bounds[1] + ROUNDING


class Claim(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One row of ``claims.yaml``, whose head says what each field means.

    ``show`` is the number in the table; ``reasons`` has a sentence for each possible verdict.
    ``untestable`` and ``not_run`` say why there is no number, for good or for now; only then may
    what follows ``metric`` be missing.
    """

    id: str
    claim: str
    paper: str
    metric: str
    value: float | None = None
    direction: Literal["at least", "at most", "close to"] | None = None
    tolerance: float | None = Field(None, ge=0)
    unit: Unit | None = None
    evidence: Evidence | None = None
    notebook: str = ""
    show: str = ""
    tests: tuple[Condition, ...] = ()
    reasons: dict[str, str] = {}
    untestable: str = ""
    not_run: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        if self.untestable or self.not_run:
            return self
        needed = ["value", "direction", "tolerance", "unit", "evidence"]
        needed += ["notebook", "show", "tests"]
        missing = [name for name in needed if getattr(self, name) in (None, "", ())]
        if missing:
            raise ValueError(f"give {', '.join(missing)}, or untestable, or not_run")
        wanted = {"reproduced", "not reproduced"} | ({"partly"} if len(self.tests) > 1 else set())
        if wanted - set(self.reasons):
            raise ValueError(f"no reason for {sorted(wanted - set(self.reasons))}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Within what the number must lie."""
        assert self.value is not None and self.tolerance is not None
        low = self.value * (1 - self.tolerance)
        high = self.value * (1 + self.tolerance)
        if self.direction == "close to":
            return self.value / (1 + self.tolerance), high
        return (low, math.inf) if self.direction == "at least" else (-math.inf, high)

    def verdict(self, numbers: pd.DataFrame) -> str:
        """``reproduced``, ``partly`` or ``not reproduced``, by a ``claims.csv`` indexed by key."""
        failed = self.failed(numbers)
        if not failed:
            return "reproduced"
        return "not reproduced" if self.tests[0] in failed else "partly"

    def failed(self, numbers: pd.DataFrame) -> list[Condition]:
        """The conditions that do not hold; ValueError names a number that is not finite."""
        failed = []
        for test in self.tests:
            row = numbers.loc[test.key]
            if not math.isfinite(row["value"]):
                raise ValueError(f"claim {self.id!r}: {test.key!r} is {row['value']}")
            low, high = row[["low", "high"]].fillna(row["value"])
            if not test.holds(low, high, self.bounds):
                failed.append(test)
        return failed


def load_claims(path: Path | None = None) -> list[Claim]:
    """Read ``claims.yaml``; ValueError names the claim and what is wrong with it."""
    raw = yaml.safe_load((path or paths.ROOT / "claims.yaml").read_text())
    claims: dict[str, Claim] = {}
    for entry in raw["claims"]:
        name = entry.get("id", "?")
        if name in claims:
            raise ValueError(f"claim {name!r} is given twice")
        try:
            claims[name] = Claim(**entry)
        except ValidationError as error:
            wrong = (
                f"{'.'.join(map(str, one['loc']))} {one['msg']}, not {one['input']!r}"
                if one["loc"]
                else one["msg"]
                for one in error.errors()
            )
            raise ValueError(f"claim {name!r}: {'; '.join(wrong)}") from None
    return list(claims.values())


# -- The table


def evaluate(claims: Sequence[Claim] | None = None) -> pd.DataFrame:
    """Judge every claim.

    Columns ``id``, ``claim``, ``paper``, ``metric``, ``asked`` (what our number must be), ``ours``
    (with its interval), ``n``, ``evidence``, ``verdict``, ``reason``, ``readings`` (how many other
    readings of the paper give the same verdict), ``command``.
    """
    claims, readings = load_claims() if claims is None else claims, other_readings()
    return pd.DataFrame([_judge(claim, readings) for claim in claims])


def other_readings() -> pd.DataFrame:
    """Verdicts under other readings of the paper: ``id``, ``reading``, ``verdict``."""
    file = paths.RESULTS / "13_sensitivity" / "verdicts.csv"
    if file.exists():
        return pd.read_csv(file)
    return pd.DataFrame(columns=["id", "reading", "verdict"])


def _judge(claim: Claim, readings: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = claim.model_dump(include={"id", "claim", "paper", "metric"})
    row |= dict.fromkeys(("asked", "ours", "n", "evidence", "verdict", "reason", "readings"), "")
    row["command"] = f"make reproduce NOTEBOOKS={claim.notebook}" if claim.notebook else ""
    file = paths.RESULTS / claim.notebook / "claims.csv"
    if claim.untestable:
        return {**row, "verdict": "not testable here", "reason": claim.untestable}
    if claim.not_run or not file.exists():
        reason = claim.not_run or "Its notebook has not been run."
        return {**row, "verdict": "not run", "reason": reason}
    numbers = pd.read_csv(file).set_index("key")
    wanted = {claim.show: claim.evidence}
    wanted |= {test.key: test.evidence or claim.evidence for test in claim.tests}
    if missing := [key for key in wanted if key not in numbers.index]:
        raise ValueError(f"claim {claim.id!r}: {file.name} of {claim.notebook} lacks {missing}")
    for key, evidence in wanted.items():
        # On a table of one's own numbers are what they are; the row says what.
        if numbers.loc[key, "evidence"] != evidence and paths.RESULTS == paths.COMMITTED:
            raise ValueError(
                f"claim {claim.id!r}: {key!r} is {numbers.loc[key, 'evidence']}, "
                f"but claims.yaml says {evidence}"
            )
    shown, verdict = numbers.loc[claim.show], claim.verdict(numbers)
    return {
        **row,
        "asked": _asked(claim),
        "ours": _with_interval(shown, claim.unit),
        "n": int(shown["n"]),
        "evidence": shown["evidence"],
        "verdict": verdict,
        "reason": _filled(claim, claim.reasons[verdict], numbers),
        "readings": _agreement(verdict, readings[readings["id"] == claim.id]),
    }


def _agreement(verdict: str, readings: pd.DataFrame) -> str:
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


def _printed(value: float, unit: str | None, ending: bool = True) -> str:
    factor, form, mark = FORMATS[unit or ""]
    if math.isinf(value):
        return ""
    return form.format(value * factor) + (mark if ending else "")


def _with_interval(row: pd.Series, unit: str | None) -> str:
    value = _printed(row["value"], unit)
    if pd.isna(row["low"]) or row["low"] == row["high"]:
        return value
    low, high = (_printed(row[bound], unit, ending=False) for bound in ("low", "high"))
    return f"{value} [{low}, {high}]"


def _filled(claim: Claim, reason: str, numbers: pd.DataFrame) -> str:
    # Keys hold spaces and commas, so ``str.format`` will not do.

    def number(match: re.Match[str]) -> str:
        key, _, unit = match[1].partition("|")
        if key not in numbers.index:
            raise ValueError(f"claim {claim.id!r}: no number {key!r} in {claim.notebook}")
        return _printed(numbers.loc[key, "value"], unit or claim.unit)

    failed = "; ".join(
        f"{test.key} is {_printed(numbers.loc[test.key, 'value'], test.unit or claim.unit)}"
        for test in claim.failed(numbers)
    )
    return re.sub(r"\{([^}]+)\}", number, reason.replace("{failed}", failed))


# -- The documents


def markdown(table: pd.DataFrame) -> str:
    """The table of ``evaluate`` as the documents show it."""
    rows = []
    for row in table.itertuples():
        ours = f"{row.ours}, n = {row.n}" if row.ours and int(row.n) > 1 else row.ours
        rows.append(
            {
                "claim": row.claim,
                "paper": row.paper,
                "ours": ours,
                "evidence": row.evidence,
                "verdict": f"**{row.verdict}**. {row.reason}",
                "same under other readings": row.readings,
                "command": f"`{row.command}`" if row.command else "",
            }
        )
    return _as_markdown(pd.DataFrame(rows))


def by_reading(table: pd.DataFrame, readings: pd.DataFrame) -> str:
    """For every claim: its verdict, and under which readings it is another."""
    rows = []
    for row in table[table["readings"] != ""].itertuples():
        own = readings[readings["id"] == row.id]
        groups = own[own["verdict"] != row.verdict].groupby("verdict", sort=False)["reading"]
        others = [f"**{verdict}**: {'; '.join(which)}" for verdict, which in groups]
        rows.append([row.claim, row.verdict, row.readings, ". ".join(others) or "none"])
    names = ["claim", "verdict", "same under", "another verdict under"]
    return _as_markdown(pd.DataFrame(rows, columns=names))


def _as_markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    texts = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([texts[0], texts[1].replace(" ", ""), *texts[2:]])


def blocks(table: pd.DataFrame, readings: pd.DataFrame) -> dict[str, str]:
    """Generated parts of the documents, by name; from ``evaluate`` and ``other_readings``."""
    counts = table["verdict"].value_counts()
    said = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts]
    columns = ["id", "metric", "paper", "asked", "ours", "evidence", "verdict"]
    return {
        **{verdict.replace(" ", "_"): _listed(table, verdict) for verdict in VERDICTS},
        "claims": markdown(table),
        "criteria": _as_markdown(table[columns]),
        "readings": by_reading(table, readings),
        "verdicts": f"Of {len(table)} claims: {', '.join(said)}.",
    }


def _listed(table: pd.DataFrame, verdict: str) -> str:
    lines = [
        f"- {row.claim}" + (f" ({row.evidence}: {row.ours})" if row.evidence else "")
        for row in table[table["verdict"] == verdict].itertuples()
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


def _outdated(table: pd.DataFrame) -> dict[Path, bytes]:
    """``results/claims.csv`` and the documents as they should be, of those that are not so.

    Raises ValueError where other results than the committed ones were judged.
    """
    if paths.RESULTS != paths.COMMITTED:
        raise ValueError(
            f"these verdicts are on {paths.RESULTS}: documents tell those on {paths.COMMITTED} "
            "alone; --print writes nothing"
        )
    made, documents = blocks(table, other_readings()), [paths.ROOT / name for name in DOCUMENTS]
    files = {file: with_blocks(file.read_text(), made).encode() for file in documents}
    files[paths.RESULTS / "claims.csv"] = as_csv(table)
    return {
        file: content
        for file, content in files.items()
        if not file.exists() or file.read_bytes() != content
    }


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
        columns = ["claim", "paper", "ours", "evidence", "verdict"]
        with pd.option_context("display.max_colwidth", 60, "display.width", 200):
            print(table[columns].to_string(index=False))
        outdated = {} if options.print else _outdated(table)
        if options.check and outdated:
            names = ", ".join(file.name for file in outdated)
            print(f"out of step with the results: {names}; run `make claims`")
            return 1
        for file, content in outdated.items():
            file.parent.mkdir(exist_ok=True)
            write_whole(file, content)
    except (ValueError, OSError, yaml.YAMLError) as error:
        print("mllm-sched claims:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
