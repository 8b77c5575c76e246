"""One measurement, and the table of many."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pandera.pandas as pa

from mllm_sched.arms import Arm
from mllm_sched.tasks import MODALITIES, Task

Evidence = Literal["measured", "simulated", "published", "estimated"]
EVIDENCE: tuple[str, ...] = get_args(Evidence)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Latency and energy of one task on one arm.

    Latency is from the start of the encoder to its last output; what the energy covers, its device
    says. ``energy_evidence`` is by default ``evidence``. ``failed`` says why there is no result;
    only a failed run may lack its latency and energy (NaN).

    Raises ValueError if a value is NaN, infinite or not above 0, or an evidence class is unknown.
    """

    arm: Arm
    task: Task
    latency_s: float
    energy_j: float
    evidence: str
    energy_evidence: str = field(default="")
    failed: str = ""

    def __post_init__(self) -> None:
        if not self.energy_evidence:
            object.__setattr__(self, "energy_evidence", self.evidence)
        for name in (self.evidence, self.energy_evidence):
            if name not in EVIDENCE:
                raise ValueError(f"evidence {name!r}: expected one of {', '.join(EVIDENCE)}")
        if not self.failed:
            check_quantity("latency_s", self.latency_s)
            check_quantity("energy_j", self.energy_j)

    def row(self) -> dict[str, object]:
        """This measurement as a row of the table: the arm's levels, then those of ``SCHEMA``."""
        return {
            **self.arm.levels,
            "modality": self.task.modality,
            "encoder": self.task.encoder,
            "size": self.task.size,
            "background_load": self.task.background_load,
            "latency_s": self.latency_s,
            "energy_j": self.energy_j,
            "evidence": self.evidence,
            "energy_evidence": self.energy_evidence,
            "failed": self.failed,
        }


def check_quantity(name: str, value: float) -> float:
    """The value as a float, if it is finite and above 0; ValueError names it otherwise."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value!r}: expected a finite number above 0")
    return number


class TableError(ValueError):
    """A table of measurements that does not hold what it should."""


_POSITIVE = pa.Check.gt(0, error="expected a number above 0")
_NOT_NEGATIVE = pa.Check.ge(0, error="expected 0 or more")
_FINITE = pa.Check(lambda column: column.abs() < math.inf, error="expected a finite number")
_LABEL = pa.Check.isin(EVIDENCE, error=f"expected one of {', '.join(EVIDENCE)}")

HARNESS_NUMBERS = (
    *("latency_half_s", "energy_half_j"),  # half-widths of 95 % intervals of the means
    *("marginal_energy_j", "marginal_half_j", "idle_w"),  # without idle power, and that power
    *("windows", "tasks", "rate_hz", "longest_gap_s", "warm_up_s"),
    *("temperature_start_c", "temperature_end_c", "dla_share", "position"),
)
HARNESS_WORDS = ("throttled", "provider", "clocks", "notes", "utc")

SCHEMA = pa.DataFrameSchema(
    {
        "modality": pa.Column(
            str, pa.Check.isin(MODALITIES, error=f"expected one of {', '.join(MODALITIES)}")
        ),
        "encoder": pa.Column(str),
        "size": pa.Column(int, _POSITIVE, required=False),
        "background_load": pa.Column(
            float,
            pa.Check.in_range(0, 1, include_max=False, error="expected within [0, 1)"),
            required=False,
        ),
        "latency_s": pa.Column(float, [_POSITIVE, _FINITE], nullable=True),
        "energy_j": pa.Column(float, [_POSITIVE, _FINITE], nullable=True),
        "latency_sd_s": pa.Column(float, _NOT_NEGATIVE, nullable=True, required=False),
        "energy_sd_j": pa.Column(float, _NOT_NEGATIVE, nullable=True, required=False),
        "evidence": pa.Column(str, _LABEL),
        "energy_evidence": pa.Column(str, _LABEL, required=False),
        "failed": pa.Column(str, required=False),
        **{name: pa.Column(float, nullable=True, required=False) for name in HARNESS_NUMBERS},
        **{name: pa.Column(str, required=False) for name in HARNESS_WORDS},
    },
    coerce=True,
)
"""Columns of a table of measurements. Every other column is a factor of the arm. A table of
summaries has the spread in ``*_sd_*`` columns; a profile has those of the harness as well."""


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Check a table and write it: ``.parquet`` as Parquet, all else as CSV; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = check_table(table, str(path))
    if path.suffix == ".parquet":
        import fastparquet  # here alone: a tenth of a second that CSV need not wait for

        fastparquet.write(str(path), table, compression="GZIP", write_index=False)
    else:
        table.to_csv(path, index=False)
    return path


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of measurements: ``.parquet`` as Parquet, all else as CSV.

    TableError names the row of the file, the column and the value, and what was expected.
    """
    if Path(path).suffix == ".parquet":
        import fastparquet

        table = fastparquet.ParquetFile(str(path)).to_pandas()
    else:
        table = pd.read_csv(path, dtype={"failed": str}, keep_default_na=True)
    return check_table(table, str(path))


def check_table(table: pd.DataFrame, name: str = "table") -> pd.DataFrame:
    """The table with its columns typed and their defaults filled, or TableError."""
    if table.empty:
        raise TableError(f"{name}: no rows")
    _check_units(table, name)
    table = table.copy()
    table["failed"] = table["failed"].fillna("") if "failed" in table else ""
    for column in table.columns.intersection(HARNESS_WORDS):
        table[column] = table[column].astype(object).fillna("")
    if "energy_evidence" not in table and "evidence" in table:
        table["energy_evidence"] = table["evidence"]
    try:
        table = SCHEMA.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        raise TableError(f"{name}: {_first_failure(table, error)}") from None
    _check_results_present(table, name)
    return table


def factor_columns(table: pd.DataFrame) -> list[str]:
    """Columns that hold the arm: all that the schema does not name."""
    return [column for column in table.columns if column not in SCHEMA.columns]


_OTHER_UNITS = {
    "latency_s": ("latency", "latency_ms", "latency_us", "latency_ns", "time_s", "time_ms"),
    "energy_j": ("energy", "energy_mj", "energy_uj", "energy_wh", "energy_kj"),
}


def _check_units(table: pd.DataFrame, name: str) -> None:
    for column, others in _OTHER_UNITS.items():
        wrong = [str(given) for given in table.columns if str(given).lower() in others]
        if wrong:
            raise TableError(
                f"{name}: column {wrong[0]!r} has another unit or none; "
                f"expected {column!r}. Convert the values and rename the column."
            )


def _first_failure(table: pd.DataFrame, error: pa.errors.SchemaErrors) -> str:
    failures = error.failure_cases
    first = failures.iloc[0]
    if first["check"] == "column_in_dataframe":
        missing = ", ".join(str(column) for column in failures["failure_case"])
        return f"column missing: {missing}; the table has {', '.join(map(str, table.columns))}"
    where = f"column {first['column']}"
    if pd.notna(first["index"]):
        where = f"row {_file_row(first['index'])}, {where}"
    expected = str(first["check"])
    if "coerce" in expected or "dtype" in expected:
        expected = f"expected {SCHEMA.columns[first['column']].dtype}"
    elif expected == "not_nullable":
        expected = "expected a value"
    value = first["failure_case"]
    value = value.item() if isinstance(value, np.generic) else value
    return f"{where}: {value!r}: {expected}"


def _check_results_present(table: pd.DataFrame, name: str) -> None:
    for column in ("latency_s", "energy_j"):
        missing = table.index[table[column].isna() & (table["failed"] == "")]
        if len(missing):
            raise TableError(
                f"{name}: row {_file_row(missing[0])}, column {column}: nan: "
                "expected a number above 0, or a reason in column 'failed'"
            )


def _file_row(index: object) -> int:
    """Row as an editor counts it: the header is row 1."""
    return int(index) + 2  # type: ignore[call-overload]
