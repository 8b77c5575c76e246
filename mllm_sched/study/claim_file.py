"""``claims.yaml``: what the paper claims, and when a claim counts as reproduced."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mllm_sched import paths

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
