"""The notebooks as files, and what nbval lets through."""

import json
import re
import subprocess
import sys

import nbformat
import pytest

from mllm_sched import paths
from mllm_sched.experiments.notebook_files import defaults, main, normalise, typed

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@named
def test_a_notebook_is_short_and_tells_before_it_computes(path):
    notebook = read(path)
    lines = [line for cell in code_of(notebook) for line in cell.source.splitlines() if line]
    assert len(lines) <= 250
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@named
def test_a_notebook_has_one_annotated_parameters_cell(path):
    tagged = [c for c in code_of(read(path)) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert ": " in line.split("=")[0] and "  # " in line, line


@named
def test_committed_outputs_are_whole(path):
    """nbval passes a stripped notebook, so this must not."""
    cells = code_of(read(path))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in kinds and {"execute_result", "display_data"} & kinds


@named
def test_a_committed_notebook_is_normalised_and_shows_no_time_or_path(path, tmp_path):
    copied = tmp_path / path.name
    copied.write_bytes(path.read_bytes())
    normalise(copied)
    assert copied.read_bytes() == path.read_bytes()
    for cell in code_of(read(path)):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            text = str(cell.outputs)
            assert str(paths.ROOT) not in text and not re.search(r"\d seconds", text)


def notebook(path, *cells):
    """Write a small notebook: a code cell for each source and what it printed."""
    made = nbformat.v4.new_notebook()
    for count, (source, printed) in enumerate(cells, start=1):
        outputs = [nbformat.v4.new_output("stream", text=printed)] if printed else []
        made.cells.append(nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=count))
    nbformat.write(made, path)
    return path


def test_normalising_removes_traces_and_keeps_outputs(tmp_path):
    path = notebook(tmp_path / "07_some.ipynb", ("print(1)", "1\n"), ("x", ""))
    changed = read(path)
    cell = changed.cells[0]
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}, "text/plain": "Box()"}
    cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="/a/path: Warning"))
    cell.outputs.append(nbformat.v4.new_output("display_data", data=view))
    cell.metadata.update(execution={"iopub.execute_input": "2026-01-01"}, tags=["parameters"])
    changed.metadata.update(papermill={"duration": 3.0}, widgets={"state": {}})
    nbformat.write(changed, path)
    assert main(["normalise", str(path)]) == 0
    after = read(path)
    assert [cell.id for cell in after.cells] == ["07-00", "07-01"]
    assert [output.text for output in after.cells[0].outputs] == ["1\n"]
    assert after.cells[0].metadata == {"tags": ["parameters"]}
    assert set(after.metadata) == {"kernelspec", "language_info"}
    before = path.stat().st_mtime_ns
    normalise(path)
    assert path.stat().st_mtime_ns == before  # so that its stamp stays


CELLS = [  # what is committed, what is printed now, and whether nbval passes it
    *[("0.123 12 a", "0.124 12 a", True), ("1234.6000 a", "1234.5678   a", True)],
    *[("0.123 12 a", "0.125 12 a", False), ("0.123 12 a", "0.123 13 a", False)],
    *[("12 of 13.", "12 of 14.", False), ("0.000 a", "-0.000 a", True)],
    *[("0.05 a", "0.06 a", False), ("0.0 a", "0.1 a", False)],
    *[("0.123 12 a", "0.123 12 b", False), ("0.123 a", "0.123 a 0.5", False)],
    *[("<b>0.123</b>", "<b>0.124</b>", True), ("<b>0.123</b>", "<b>0.133</b>", False)],
]


def test_nbval_catches_what_changed_and_passes_the_last_digit(tmp_path):
    shown = [f"from IPython.display import HTML; HTML({new!r})" for _, new, _ in CELLS]
    path = notebook(tmp_path / "00_tiny.ipynb", *((source, "") for source in shown))
    made = read(path)
    for cell, (old, _, _) in zip(made.cells, CELLS, strict=True):
        data = {"text/html": old, "text/plain": "<IPython.core.display.HTML object>"}
        result = {"data": data, "execution_count": cell.execution_count}
        cell.outputs = [nbformat.v4.new_output("execute_result", **result)]
    nbformat.write(made, path)
    settings = ["-p", "conftest", "-p", "no:cacheprovider", "-c", paths.ROOT / "pyproject.toml"]
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA"]
    done = subprocess.run(
        [*command, *settings, path], capture_output=True, text=True, cwd=paths.ROOT
    )
    found = re.findall(r"^(PASSED|FAILED) .*::Cell (\d+)", done.stdout, re.MULTILINE)
    passed = {int(number): word == "PASSED" for word, number in found}
    assert passed == {place: same for place, (*_, same) in enumerate(CELLS)}, done.stdout


TEXT = """\
n: int = 3  # how many
speed: float = 1.0  # metres per second
name: str = "a"  # whatever
sizes: list = [1, 2]  # some
"""


@pytest.fixture
def tiny(tmp_path):
    """A notebook with parameters."""
    path = notebook(tmp_path / "00_tiny.ipynb", (TEXT, ""))
    made = read(path)
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


def test_parameters_take_the_type_of_their_defaults(tiny, tmp_path):
    other = notebook(tmp_path / "01_other.ipynb", ("1", ""))
    given = ["n=4", "speed=1e-1", "name=10", "sizes=[6,10]"]
    wanted = {"n": 4, "speed": 0.1, "name": "10", "sizes": [6, 10]}
    assert typed(given, [tiny, other]) == {tiny: wanted, other: {}}
    assert typed(["speed=2"], [tiny]) == {tiny: {"speed": 2.0}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("seeds=3", "no notebook has the parameter 'seeds':\n  00_tiny: n, speed, name, sizes"),
        ("n=1.5", "00_tiny: n=1.5: expected int"),
        ("speed=fast", "00_tiny: speed=fast: expected float"),
        ("sizes=[1", "00_tiny: sizes=[1: expected list"),
        ("sizes=1", "00_tiny: sizes=1: expected list"),
        ("n", "n: expected NAME=VALUE"),
        ("n=", "n=: expected NAME=VALUE"),
    ],
)
def test_a_wrong_parameter_is_refused(tiny, tmp_path, capsys, given, told):
    assert main(["parameters", str(tmp_path / "out"), "--set", given, str(tiny)]) == 2
    assert capsys.readouterr().err == f"{told}\n"
    assert not (tmp_path / "out").exists()


@named
def test_a_notebook_has_the_parameters_that_made_its_committed_results(path):
    """Else `make reproduce` writes them elsewhere, and the committed ones are never made again."""
    record = paths.COMMITTED / path.stem / "provenance.json"
    on_record = json.loads(record.read_text())["parameters"] if record.exists() else {}
    own = defaults(path)
    assert own
    for name in own.keys() & on_record.keys():
        assert own[name] == on_record[name], name
