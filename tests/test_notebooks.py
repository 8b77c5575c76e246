"""The notebooks as files, the runner, and what nbval would let through."""

import ast
import copy
import re
import subprocess
import sys

import nbformat
import pytest

from mllm_sched import paths
from mllm_sched.study import notebooks as runner

NOTEBOOKS = runner.notebooks()
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@named
def test_a_notebook_is_short_and_tells_before_it_computes(path):
    notebook = read(path)
    lines = [line for cell in code_of(notebook) for line in cell.source.splitlines() if line]
    assert len(notebook.cells) <= 25 and len(lines) <= 100
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    nodes = [node for cell in code_of(notebook) for node in ast.walk(ast.parse(cell.source))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all(function.end_lineno - function.lineno < 5 for function in functions)


@named
def test_a_notebook_has_one_annotated_parameters_cell(path):
    tagged = [c for c in code_of(read(path)) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line in tagged[0].source.splitlines():
        assert ": " in line.split("=")[0] and "  # " in line, line


@named
def test_no_prose_is_a_placeholder(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert not [text for text in prose if text.isupper()]


@named
def test_committed_outputs_are_whole(path):
    """nbval passes a stripped notebook, so this must not."""
    assert not whole(read(path))


def whole(notebook):
    """What is wrong with the outputs of a notebook; nothing if they are all there."""
    cells = code_of(notebook)
    counts = [cell.execution_count for cell in cells]
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    wrong = []
    if counts != list(range(1, len(cells) + 1)):
        wrong.append(f"execution counts {counts}")
    if "error" in kinds:
        wrong.append("an error among the outputs")
    if not {"execute_result", "display_data"} & set(kinds):
        wrong.append("no outputs")
    return wrong


def test_a_stripped_notebook_is_refused():
    notebook = copy.deepcopy(read(NOTEBOOKS[0]))
    for cell in code_of(notebook):
        cell.outputs, cell.execution_count = [], None
    assert "no outputs" in whole(notebook)


@named
def test_a_committed_notebook_is_normalised(path, tmp_path):
    copied = tmp_path / path.name
    copied.write_bytes(path.read_bytes())
    assert not runner.normalise(copied)
    assert read(path).metadata.kernelspec.name == "python3"


@named
def test_no_compared_cell_shows_a_time_or_a_path(path):
    for cell in code_of(read(path)):
        if "nbval-ignore-output" not in cell.metadata.get("tags", []):
            text = str(cell.outputs)
            assert str(paths.ROOT) not in text and not re.search(r"\d seconds", text)


def test_normalising_removes_traces_and_keeps_outputs(tmp_path):
    path = tmp_path / "00_copy.ipynb"
    notebook = read(NOTEBOOKS[0])
    before = copy.deepcopy([cell.outputs for cell in code_of(notebook)])
    notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    notebook.cells[1].id = "something-random"
    notebook.metadata["papermill"] = {"duration": 3.0}
    warned = nbformat.v4.new_output("stream", name="stderr", text="/some/path: Warning")
    code_of(notebook)[1].outputs.append(warned)
    nbformat.write(notebook, path)
    assert runner.normalise(path) and not runner.normalise(path)
    after = read(path)
    assert "papermill" not in after.metadata and after.cells[1].id == "00-01"
    assert [cell.outputs for cell in code_of(after)] == before


def nbval(path):
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", str(paths.ROOT / "pyproject.toml"), str(path)],
        capture_output=True,
        text=True,
        cwd=paths.ROOT,
    )
    return done.returncode, done.stdout


def test_nbval_catches_a_number_that_changed(tiny):
    runner.refresh()
    assert nbval(tiny)[0] == 0
    tiny.write_text(tiny.read_text().replace("[3.0, 'a']", "[3.1, 'a']"))
    status, output = nbval(tiny)
    assert status == 1 and "3.1" in output and "3.0" in output


LIVE = "import time\ntime.time_ns()"


@pytest.fixture
def live(tiny):
    """The tiny notebook with a live cell, run once."""
    notebook = read(tiny)
    tags = {"tags": ["nbval-ignore-output"]}
    notebook.cells.append(nbformat.v4.new_code_cell(LIVE, metadata=tags))
    nbformat.write(notebook, tiny)
    runner.refresh()
    return tiny


def edit(path, place, source):
    notebook = read(path)
    notebook.cells[place].source = source
    nbformat.write(notebook, path)


def shown(path):
    """What the live cell shows, and the one before it."""
    return [cell.outputs[0].data["text/plain"] for cell in read(path).cells[:1:-1]]


def test_run_again_a_notebook_is_the_same_file(live, capsys):
    before = live.read_bytes()
    capsys.readouterr()
    runner.refresh()
    assert live.read_bytes() == before
    assert "00_tiny: live outputs kept in cells 3; LIVE=1" in capsys.readouterr().out


def test_live_outputs_are_taken_anew_when_asked(live, capsys):
    before = shown(live)
    capsys.readouterr()
    assert runner.main(["refresh", "--live"]) == 0
    assert shown(live)[0] != before[0] and shown(live)[1] == before[1]
    assert "kept" not in capsys.readouterr().out


@pytest.mark.parametrize(("place", "source"), [(3, LIVE + "  # again"), (2, "[n, name]")])
def test_live_outputs_of_other_code_are_taken_anew(live, place, source):
    before = shown(live)
    edit(live, place, source)
    runner.refresh()
    assert shown(live)[0] != before[0]
    assert shown(live)[1] == ("[3, 'a']" if place == 2 else before[1])


def test_prose_and_code_behind_it_leave_a_live_output_as_it_is(live):
    before = shown(live)
    edit(live, 0, "# Another title")
    notebook = read(live)
    notebook.cells.append(nbformat.v4.new_code_cell("'behind'"))
    nbformat.write(notebook, live)
    runner.refresh()
    assert shown(live)[1] == before[0]


def test_a_live_cell_that_was_emptied_is_filled(live):
    notebook = read(live)
    notebook.cells[3].outputs = []
    nbformat.write(notebook, live)
    runner.refresh()
    assert int(shown(live)[0]) > 0


def test_a_compared_output_is_always_taken_anew(live):
    live.write_text(live.read_text().replace("[3.0, 'a']", "[3.1, 'a']"))
    runner.refresh()
    assert shown(live)[1] == "[3.0, 'a']"


def test_views_of_widgets_are_removed_and_text_in_pieces_is_joined(tiny):
    notebook = read(tiny)
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}, "text/plain": "Box()"}
    pieces = [nbformat.v4.new_output("stream", text=text) for text in ("one\n", "two\n")]
    warned = nbformat.v4.new_output("stream", name="stderr", text="Warning")
    drawn = nbformat.v4.new_output("display_data", data=view)
    notebook.cells[2].outputs = [pieces[0], warned, pieces[1], drawn]
    notebook.metadata["widgets"] = {"state": {}}
    nbformat.write(notebook, tiny)
    assert runner.normalise(tiny) and not runner.normalise(tiny)
    (output,) = read(tiny).cells[2].outputs
    assert output.text == "one\ntwo\n"
    assert "widgets" not in read(tiny).metadata


@pytest.mark.parametrize(
    ("source", "told"),
    [("1 / 0", "ZeroDivisionError"), ("import os; os._exit(1)", "Kernel died")],
)
def test_a_failing_cell_or_kernel_is_told_and_the_file_stays(tiny, capsys, source, told):
    edit(tiny, 2, source)
    before = tiny.read_bytes()
    assert runner.main(["refresh"]) == 1
    said = capsys.readouterr().err
    assert told in said and said.endswith("The notebook is as it was.\n")
    assert tiny.read_bytes() == before
