import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.arms import ArmSpace
from mllm_sched.measurement import (
    Measurement,
    TableError,
    factor_columns,
    read_table,
    write_table,
)
from mllm_sched.tasks import Task

SPACE = ArmSpace.agx_orin()
TASK = Task("image", "clip-vit-l14-336")


def measurement(index=0, latency_s=0.13, energy_j=3.2, **changes):
    return Measurement(SPACE[index], TASK, latency_s, energy_j, "simulated", **changes)


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf])
@pytest.mark.parametrize("quantity", ["latency_s", "energy_j"])
def test_nan_and_negative_measurements_are_refused(quantity, value):
    with pytest.raises(ValueError, match=rf"{quantity}={value}: expected a finite number above 0"):
        measurement(**{quantity: value})


def test_a_failed_run_needs_no_result():
    failed = measurement(latency_s=math.nan, energy_j=math.nan, failed="out of memory")
    assert failed.failed == "out of memory"


def test_unknown_evidence_lists_the_classes():
    with pytest.raises(ValueError, match="'guessed': expected one of measured, simulated"):
        Measurement(SPACE[0], TASK, 0.1, 1.0, "guessed")


def test_energy_evidence_follows_the_latency_unless_said():
    assert measurement().energy_evidence == "simulated"
    assert measurement(energy_evidence="estimated").energy_evidence == "estimated"


@settings(max_examples=20)  # each writes a file
@given(
    st.lists(
        st.tuples(st.integers(0, 59), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)),
        min_size=1,
        max_size=5,
    )
)
def test_a_table_survives_the_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    table = pd.DataFrame([measurement(*row).row() for row in rows])
    write_table(table, path)
    back = read_table(path)
    pd.testing.assert_frame_equal(back[list(table)], table, check_dtype=False)
    assert factor_columns(back) == ["component", "power_w", "load"]


def table_with(tmp_path, edit):
    table = pd.DataFrame([measurement(index).row() for index in range(3)]).astype(object)
    path = tmp_path / "bad.csv"
    edit(table).to_csv(path, index=False)
    return path


def set_cell(row, column, value):
    def edit(table):
        table.loc[row, column] = value
        return table

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_cell(1, "latency_s", -0.2), r"row 3, column latency_s: -0.2: expected a number above"),
        (set_cell(2, "energy_j", "lots"), r"column energy_j: 'lots': expected float64"),
        (set_cell(0, "latency_s", math.nan), r"row 2, column latency_s: nan.*failed"),
        (set_cell(0, "latency_s", math.inf), r"row 2, column latency_s: inf: expected a finite"),
        (set_cell(1, "evidence", "guess"), r"row 3, column evidence: 'guess': expected one of"),
        (set_cell(1, "modality", "smell"), r"row 3, column modality: 'smell'"),
        (set_cell(1, "background_load", 1.5), r"row 3, column background_load: 1.5"),
        (lambda t: t.drop(columns="energy_j"), r"column missing: energy_j"),
        (lambda t: t.rename(columns={"latency_s": "latency_ms"}), r"latency_ms.*expected 'latency"),
        (lambda t: t.rename(columns={"energy_j": "energy_mJ"}), r"energy_mJ.*expected 'energy_j'"),
        (lambda t: t.iloc[:0], r"no rows"),
    ],
)
def test_a_bad_table_names_row_column_and_value(tmp_path, edit, message):
    path = table_with(tmp_path, edit)
    with pytest.raises(TableError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_a_failed_row_may_be_empty(tmp_path):
    def edit(table):
        table.loc[1, ["latency_s", "energy_j"]] = math.nan
        table.loc[1, "failed"] = "engine did not build"
        return table

    table = read_table(table_with(tmp_path, edit))
    assert table["failed"].tolist() == ["", "engine did not build", ""]
