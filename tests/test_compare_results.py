"""The comparison of tables that `make test` makes after the notebooks ran."""

import pytest
from compare_results import differences

TABLE = "scheduler,energy_j,low,high,n\nUCB,1.23456,1.2,1.3,10\nRandom,0,,,123456\n"


@pytest.fixture
def folders(tmp_path):
    for name in ("committed", "now"):
        (tmp_path / name / "04").mkdir(parents=True)
        (tmp_path / name / "04" / "table.csv").write_text(TABLE)
    return tmp_path / "committed", tmp_path / "now"


@pytest.mark.parametrize(("old", "new"), [("1.23456", "1.23457"), (",0,", ",1e-10,")])
def test_rounding_passes(folders, old, new):
    (folders[1] / "04" / "table.csv").write_text(TABLE.replace(old, new))
    assert not differences(*folders)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("1.23456", "1.2356", "line 2, energy_j: '1.23456' became '1.2356'"),
        (",10\n", ",11\n", "line 2, n: '10' became '11'"),
        ("UCB", "ucb", "line 2, scheduler: 'UCB' became 'ucb'"),
        (",0,", ",,", "line 3, energy_j: '0' became ''"),
        ("low,high", "high,low", "line 1, low: 'low' became 'high'"),
        ("Random,0,,,123456\n", "", "line 3: 'Random,0,,,123456' became nothing"),
    ],
)
def test_what_changed_is_named_with_both_values(folders, old, new, told):
    (folders[1] / "04" / "table.csv").write_text(TABLE.replace(old, new))
    assert differences(*folders) == [f"04/table.csv: {told}"]


def test_a_table_that_is_gone_or_new_is_named(folders):
    (folders[1] / "04" / "table.csv").rename(folders[1] / "04" / "other.csv")
    assert differences(*folders) == ["04/other.csv: is new", "04/table.csv: is missing"]


def test_nothing_to_compare_with_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tables in"):
        differences(tmp_path, tmp_path)
