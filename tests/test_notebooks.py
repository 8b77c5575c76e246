"""The notebooks as files, the runner, and what nbval would let through."""

import ast
import copy
import subprocess
import sys

import nbformat
import pytest

from mllm_sched import paths
from mllm_sched.study import notebooks as runner

NOTEBOOKS = runner.notebooks()
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

TINY = """\
n: int = 3  # how many
speed: float = 1.0  # metres per second
name: str = "a"  # whatever
"""


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
            assert str(paths.ROOT) not in text and " seconds" not in text


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


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with one small notebook, in the place of the repository's."""
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell(TINY, metadata={"tags": ["parameters"]})
    shown = nbformat.v4.new_code_cell("[n * speed, name]")
    notebook.cells = [nbformat.v4.new_markdown_cell("# Tiny"), parameters, shown]
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "00_tiny.ipynb"
    nbformat.write(notebook, path)
    runner.normalise(path)
    monkeypatch.setattr(paths, "NOTEBOOKS", path.parent)
    monkeypatch.setattr(runner, "EXECUTED", tmp_path / "executed")
    return path


def test_parameters_take_the_type_of_their_defaults(tiny):
    typed = runner.typed({"n": "5", "speed": "2", "name": "7"}, [tiny])
    assert typed == {tiny: {"n": 5, "speed": 2.0, "name": "7"}}
    assert isinstance(typed[tiny]["speed"], float)


def test_a_parameter_that_does_not_exist_is_refused_with_those_that_do(tiny):
    with pytest.raises(ValueError, match=r"no notebook has the parameter 'm':\n.*n, speed, name"):
        runner.reproduce({"m": "5"})


@pytest.mark.parametrize(("name", "text"), [("n", "many"), ("n", "1.5"), ("speed", "true")])
def test_a_parameter_of_another_type_is_refused(tiny, name, text):
    with pytest.raises(ValueError, match=f"00_tiny: {name}={text}: expected"):
        runner.reproduce({name: text})


def test_an_unknown_notebook_is_refused_with_those_there_are(tiny):
    with pytest.raises(ValueError, match="'05_none': expected one of 00_tiny"):
        runner.reproduce({}, ["05_none"])


def test_the_command_says_what_was_wrong_and_ends_with_2(tiny, capsys):
    assert runner.main(["reproduce", "--set", "m=5"]) == 2
    assert "no notebook has the parameter 'm'" in capsys.readouterr().err
    assert runner.main(["reproduce", "--set", "n"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err


def test_reproduce_runs_with_the_parameters_and_leaves_the_source_alone(tiny, monkeypatch):
    monkeypatch.setenv("MLLM_SCHED_RESULTS", "")  # restored afterwards
    source = tiny.read_bytes()
    runner.reproduce({"n": "5", "name": "b"})
    executed = read(runner.EXECUTED / tiny.name)
    assert executed.cells[-1].outputs[0].data["text/plain"] == "[5.0, 'b']"
    assert tiny.read_bytes() == source


def test_a_failing_cell_is_told_and_what_ran_before_it_is_kept(tiny, capsys):
    notebook = read(tiny)
    notebook.cells.append(nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(notebook, tiny)
    assert runner.main(["reproduce"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    executed = read(runner.EXECUTED / tiny.name)
    assert code_of(executed)[-2].outputs[0].data["text/plain"] == "[3.0, 'a']"


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


def test_the_notebooks_run_on_a_table_of_ones_own(tmp_path, monkeypatch):
    """As ``make reproduce DEVICE=trace:my.csv SEEDS=2`` does, but smaller."""
    monkeypatch.setattr(runner, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setenv("MLLM_SCHED_RESULTS", "")  # restored afterwards
    table = paths.PUBLISHED / "orin_sweep_trace.csv"
    small = {"seeds": 2, "steps": 20, "variant_seeds": 1, "replay_steps": 5, "replay_seeds": 2}
    small |= {"live_steps": 2, "limit_s": 0.3, "device": f"trace:{table}"}
    parameters = {name: str(value) for name, value in small.items()}
    runner.reproduce(parameters, ["00_quickstart", "04_scheduler_comparison"])
    executed = read(tmp_path / "executed" / "04_scheduler_comparison.ipynb")
    assert "lraspp_mobilenet_v3_large: " in str(code_of(executed)[2].outputs)
    written = tmp_path / "results" / "04_scheduler_comparison" / "summary.csv"
    assert "Safe GP-UCB" in written.read_text()
