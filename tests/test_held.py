"""What `make test` says of tables and figures after the notebooks ran again."""

import base64
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from mllm_sched import paths
from mllm_sched.study.figures import as_svg
from mllm_sched.study.held import compare, figure_difference, main, table_difference
from mllm_sched.study.provenance import as_csv

TABLE = "scheduler,energy_j,n\nUCB,1.5,3\nRandom,0,4\n"
words = st.text("abc ,\"'é", max_size=5)
numbers = st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-3)


@style.context("default")  # whatever the tests before left
def drawn(values=(1.0, 2.0, 4.0), *, label="UCB", lines=1, colour="#0173b2"):
    ax = Figure().subplots()
    for line in range(lines):
        ax.plot([value + line for value in values], "-o", color=colour, label=label)
    ax.errorbar([0.5], [2.0], yerr=[0.3])
    ax.legend()
    return as_svg(ax.figure).decode()


FIGURE = drawn()


@pytest.fixture
def folders(tmp_path):
    """A folder that was kept, and the same after a rerun."""
    (tmp_path / "held" / "study").mkdir(parents=True)
    (tmp_path / "held" / "study" / "table.csv").write_text(TABLE)
    (tmp_path / "held" / "study" / "result.svg").write_text(FIGURE)
    (tmp_path / "held" / "study" / "result.png").write_bytes(b"pixels")
    shutil.copytree(tmp_path / "held", tmp_path / "now")
    return tmp_path / "held", tmp_path / "now"


def test_equal_folders_hold(folders, capsys):
    assert compare(*folders) == []
    assert main([str(folder) for folder in folders]) == 0
    assert "all tables and figures are what they were" in capsys.readouterr().out


def test_a_changed_result_is_named_with_its_first_difference(folders, capsys):
    (folders[1] / "study" / "table.csv").write_text(TABLE.replace("1.5", "1.6"))
    (folders[1] / "study" / "result.svg").write_text(FIGURE.replace(">UCB<", ">BCU<"))
    assert main([str(folder) for folder in folders]) == 1
    said = capsys.readouterr().out
    assert "study/table.csv: line 2, energy_j: '1.5' became '1.6'" in said
    assert re.search(r"study/result\.svg: .*'UCB' became 'BCU'", said)


@pytest.mark.parametrize("name", ["table.csv", "result.svg"])
def test_a_missing_and_a_new_file_are_told(folders, name):
    held, now = folders
    (now / "study" / name).unlink()
    assert compare(held, now) == [f"study/{name}: is missing"]
    assert compare(now, held) == [f"study/{name}: is new"]


def test_pixels_are_not_compared(folders):
    (folders[1] / "study" / "result.png").write_bytes(b"others")
    assert compare(*folders) == []


def test_nothing_to_compare_with_is_no_success(tmp_path, capsys):
    (tmp_path / "held").mkdir()
    assert main([str(tmp_path / "held"), str(paths.ROOT / "results")]) == 2
    assert "nothing to compare with" in capsys.readouterr().out


@given(st.lists(st.tuples(words, numbers), min_size=1, max_size=4), st.floats(-5e-5, 5e-5))
def test_a_table_holds_if_its_numbers_differ_by_rounding(rows, part):
    held, now = (table(rows, factor) for factor in (1.0, 1.0 + part))
    assert table_difference(held, now) == ""


@given(st.lists(st.tuples(words, numbers), min_size=1, max_size=4), st.data())
def test_a_table_does_not_hold_if_a_number_differs_by_more(rows, data):
    changed = list(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    changed[place] = (rows[place][0], rows[place][1] * data.draw(st.sampled_from([0.99, 1.001])))
    assert f"line {place + 2}, b:" in table_difference(table(rows), table(changed))


def table(rows, factor=1.0):
    frame = pd.DataFrame([(text, number * factor) for text, number in rows], columns=["a", "b"])
    return as_csv(frame).decode()


@pytest.mark.parametrize(
    "now",
    [
        TABLE.replace("UCB", "ucb"),
        TABLE.replace("n\n", "m\n", 1),
        TABLE.replace("1.5", ""),
        TABLE.replace("Random,0,4\n", ""),
        TABLE + "Oracle,1,1\n",
        TABLE.replace(",3", ",3,3"),
        TABLE.replace(",0,", ",0.001,"),
        TABLE.replace("1.5", "nan"),
        TABLE.replace(",3", ",20001"),
    ],
)
def test_a_table_of_another_text_or_shape_does_not_hold(now):
    assert table_difference(TABLE, now)


@pytest.mark.parametrize(("count", "now"), [(20000, 20001), (1234567, 1234568), (0, -1)])
def test_a_count_is_exact(count, now):
    assert table_difference(f"n\n{count}\n", f"n\n{now}\n")


def test_a_number_that_was_rounded_to_a_whole_one_holds():
    given = [as_csv(pd.DataFrame({"a": [value]})).decode() for value in (123456.49, 123456.51)]
    assert given[0] != given[1]
    assert table_difference(*given) == ""


@given(st.lists(st.floats(-2e-4, 2e-4), min_size=3, max_size=3))
def test_a_figure_holds_if_its_coordinates_differ_by_less_than_one_sees(moved):
    now = drawn([value * (1 + part) for value, part in zip((1.0, 2.0, 4.0), moved, strict=True)])
    assert figure_difference(FIGURE, now) == ""


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (drawn((1.0, 2.2, 4.0)), "d: "),
        (FIGURE.replace(">UCB<", ">BCU<"), "'UCB' became 'BCU'"),
        (drawn(lines=2), "became"),
        (drawn(colour="#0173b3"), "'#0173b2' became '#0173b3'"),
        (drawn((1.0, 2.0)), "became"),
        (FIGURE.replace("opacity: 0.8", "opacity: 0.7"), "'0.8' became '0.7'"),
        (FIGURE.replace("<use ", "<use class='a' ", 1), "attributes"),
        (FIGURE.replace("</defs>", "</defs>behind", 1), "'behind"),
    ],
)
def test_a_changed_figure_does_not_hold(now, said):
    assert now != FIGURE
    assert said in figure_difference(FIGURE, now)


@pytest.mark.parametrize(
    ("held", "now", "holds"),
    [
        ("scale(0.1)", "scale(0.19)", False),
        ("translate(3 4) scale(0.1 -0.1)", "translate(3.05 4) scale(0.1 -0.1)", True),
        ("translate(3 4) scale(0.1 -0.1)", "translate(3 4) scale(0.1 -0.15)", False),
        ("matrix(1 0 0 1 5 5)", "matrix(1.05 0 0 1 5 5)", False),
        ("scale(2) translate(3 4)", "scale(2) translate(3.05 4)", True),
        ("rotate(-90 3 4)", "rotate(-90 3.05 4)", True),
    ],
)
def test_of_a_transform_a_shift_may_be_rounded_and_a_factor_not(held, now, holds):
    figures = [f'<svg><g transform="{text}"/></svg>' for text in (held, now)]
    assert (figure_difference(*figures) == "") == holds


@pytest.mark.parametrize(("levels", "holds"), [(0, True), (2, True), (20, False)])
def test_a_picture_in_a_figure_holds_within_a_few_shades(levels, holds):
    def figure(value):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(file, format="png")
        text = base64.b64encode(file.getvalue()).decode()
        return f'<svg xmlns:x="http://x"><image x:href="data:image/png;base64,{text}"/></svg>'

    assert (figure_difference(figure(100), figure(100 + levels)) == "") == holds


def test_the_figures_that_are_committed_hold_against_themselves():
    """Every one can be read, and a number changed in any of them is found."""
    for path in sorted(paths.ROOT.glob("results/*/*.svg")):
        text = path.read_text()
        assert figure_difference(text, text + "\n") == ""
        number = re.findall(r' y="(\d+\.\d+)"', text)[-1]
        changed = text.replace(f' y="{number}"', f' y="{float(number) + 1}"')
        assert "y: " in figure_difference(text, changed), path.name
