"""`make reproduce`: parameters, what is up to date, and what is run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import nbformat
import papermill
import pytest
from papermill.engines import Engine, papermill_engines

from mllm_sched import paths
from mllm_sched.study import checkpoints, records, versions
from mllm_sched.study import notebooks as runner
from mllm_sched.study.checkpoints import ENVIRONMENT

# What the tiny notebook does on top: as a study, it uses the package and writes a result.
STUDY = """\
import pandas as pd
from mllm_sched.study.provenance import save_results
save_results("00_tiny", {"table": pd.DataFrame({"n": [n]})}, {}, {"n": n}, data=[])
"""


def code_of(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def append(path, *sources):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, path)


def test_parameters_take_the_type_of_their_defaults(tiny):
    typed = runner.typed({"n": "5", "speed": "2", "name": "7"}, [tiny])
    assert typed == {tiny: {"n": 5, "speed": 2.0, "name": "7"}}
    assert isinstance(typed[tiny]["speed"], float)


def test_a_parameter_that_does_not_exist_is_refused_with_those_that_do(tiny):
    with pytest.raises(ValueError, match=r"no notebook has the parameter 'm':\n.*n, speed, name"):
        runner.reproduce({"m": "5"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("speed", "1e-1", 0.1), ("speed", "2", 2.0), ("name", "%a", "%a"), ("name", "[1,", "[1,")],
)
def test_numbers_and_texts_may_be_what_yaml_would_not_take(tiny, name, text, value):
    assert runner.typed({name: text}, [tiny])[tiny] == {name: value}


def test_a_list_that_does_not_end_is_refused(tiny, capsys):
    tiny.write_text(tiny.read_text().replace("name: str", "sizes: list = [1]\\nname: str"))
    assert runner.typed({"sizes": "[1, 2]"}, [tiny])[tiny] == {"sizes": [1, 2]}
    assert runner.main(["reproduce", "--set", "sizes=[1,"]) == 2
    assert "sizes=[1,: expected list" in capsys.readouterr().err


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


def test_reproduce_runs_with_the_parameters_and_leaves_the_source_alone(tiny):
    source = tiny.read_bytes()
    runner.reproduce({"n": "5", "name": "b"})
    executed = code_of(runner.EXECUTED / "own" / tiny.name)
    assert executed[-1].outputs[0].data["text/plain"] == "[5.0, 'b']"
    assert tiny.read_bytes() == source


def test_a_failing_cell_is_told_and_what_ran_before_it_is_kept(tiny, capsys):
    append(tiny, "1 / 0")
    assert runner.main(["reproduce"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert code_of(runner.EXECUTED / tiny.name)[-2].outputs[0].data["text/plain"] == "[3.0, 'a']"


class InProcess(Engine):
    """Runs the cells in this very process, where what matters is which notebooks run and why."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        names = {}
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != "code":
                continue
            nb_man.cell_start(cell, index)
            results = Path(os.environ["MLLM_SCHED_RESULTS"])  # as a kernel finds it at its start
            try:
                with mock.patch.object(paths, "RESULTS", results):
                    exec(cell.source, names)
            except Exception as error:
                told = {"ename": type(error).__name__, "evalue": str(error)}
                cell.outputs = [nbformat.v4.new_output("error", **told)]
                nb_man.cell_exception(cell, index, exception=error)
                return
            nb_man.cell_complete(cell, index)


papermill_engines.register("in-process", InProcess)


@pytest.fixture
def study(tiny, monkeypatch):
    """The tiny notebook, which writes a result now; it runs without a kernel."""
    append(tiny, STUDY)
    execute = partial(papermill.execute_notebook, engine_name="in-process")
    monkeypatch.setattr(runner.papermill, "execute_notebook", execute)
    return tiny


def said(capsys, *arguments):
    """What ``reproduce`` says of the one notebook, or of each."""
    assert runner.main(["reproduce", *arguments]) == 0
    return capsys.readouterr().out


UP_TO_DATE = "[1/1] 00_tiny: up to date (same code, data and parameters; "


def test_what_is_up_to_date_is_skipped_and_says_so(tiny, capsys):
    append(tiny, STUDY)
    assert "[1/1] 00_tiny: no finished run on record" in said(capsys)
    executed = (runner.EXECUTED / tiny.name).read_bytes()
    assert UP_TO_DATE in said(capsys)
    assert (runner.EXECUTED / tiny.name).read_bytes() == executed


def test_force_runs_what_is_up_to_date(study, capsys):
    said(capsys)
    assert "[1/1] 00_tiny: FORCE=1" in said(capsys, "--force")
    assert UP_TO_DATE in said(capsys)


def test_prose_and_outputs_are_no_reason_to_run(study, capsys):
    said(capsys)
    notebook = nbformat.read(study, as_version=4)
    notebook.cells[0].source = "# Another title"
    notebook.cells[2].outputs = []
    nbformat.write(notebook, study)
    assert UP_TO_DATE in said(capsys)


def test_changed_code_is_named(study, capsys):
    said(capsys)
    append(study, "1 + 1")
    assert "stale: the code of 00_tiny.ipynb changed" in said(capsys)


def test_many_changes_are_counted(study, capsys):
    said(capsys)
    append(study, "import mllm_sched.study.comparison")
    now = said(capsys)
    assert "stale: the code of 00_tiny.ipynb changed, " in now and " is new, and " in now


@pytest.mark.parametrize(
    "name", ["mllm_sched/study/provenance.py", "data/encoders/work.csv", "requirements.lock"]
)
def test_a_changed_file_is_named(study, capsys, monkeypatch, name):
    said(capsys)
    as_it_is = records.checksum
    changed = paths.ROOT / name
    monkeypatch.setattr(
        records, "checksum", lambda path: "other" if path == changed else as_it_is(path)
    )
    assert f"stale: {name} changed" in said(capsys)
    assert UP_TO_DATE in said(capsys)


def test_another_python_is_named(study, capsys, monkeypatch):
    said(capsys)
    monkeypatch.setattr(records.platform, "python_version", lambda: "4.0.0")
    assert "stale: the version of Python changed" in said(capsys)


@pytest.mark.parametrize("package", ["numpy", "gpytorch"])
def test_another_version_of_a_package_is_named(study, capsys, monkeypatch, package):
    said(capsys)
    as_it_is = versions.version
    monkeypatch.setattr(
        versions, "version", lambda name: "99.0" if name == package else as_it_is(name)
    )
    assert f"stale: the version of {package} changed" in said(capsys)


def test_a_table_of_ones_own_among_the_data_is_no_reason_to_run(study, capsys, monkeypatch):
    said(capsys)
    monkeypatch.setattr(paths, "DATA", paths.RESULTS.parent / "data")
    shutil.copytree(records.SUMS.parent, paths.DATA)
    for name in ("mine.csv", ".mine.csv.lock"):
        (paths.DATA / "traces" / name).write_text("")
    monkeypatch.setattr(records, "_said", said_of_data(records._said))
    assert UP_TO_DATE in said(capsys)
    (paths.DATA / "encoders" / "work.csv").write_text("")
    assert "stale: data/encoders/work.csv changed" in said(capsys)


def said_of_data(as_it_is):
    """A file of the copied data as if it were the repository's."""
    return lambda path: as_it_is(
        paths.ROOT / "data" / path.relative_to(paths.DATA)
        if path.is_relative_to(paths.DATA)
        else path
    )


def test_what_an_office_program_leaves_beside_a_result_is_no_reason_to_run(study, capsys):
    said(capsys)
    (paths.RESULTS / "00_tiny" / ".~lock.table.csv#").write_text("")
    assert UP_TO_DATE in said(capsys)


def test_a_lost_or_edited_result_is_made_again(study, capsys):
    said(capsys)
    table = paths.RESULTS / "00_tiny" / "table.csv"
    table.write_text("n\n4\n")
    assert "table.csv changed" in said(capsys)
    assert table.read_text() == "n\n3\n"
    table.unlink()
    assert "table.csv is gone" in said(capsys)
    assert table.exists() and UP_TO_DATE in said(capsys)
    (runner.EXECUTED / study.name).unlink()
    assert "00_tiny.ipynb is gone" in said(capsys)


@pytest.mark.parametrize(
    "content",
    [
        *('{"parts": ', "[]", '{"parts": null, "written": {}, "wall_s": 1}'),
        *('{"parts": {}, "written": 3, "wall_s": 1}', '{"parts": {}, "written": {}}'),
        '{"parts": {}, "written": {}, "wall_s": "long"}',
    ],
)
def test_a_damaged_record_is_no_record(study, capsys, content):
    said(capsys)
    (runner.EXECUTED / "00_tiny.json").write_text(content)
    assert "its record 00_tiny.json cannot be read" in said(capsys)
    assert UP_TO_DATE in said(capsys)


def test_runs_with_other_parameters_have_records_of_their_own(study, capsys):
    said(capsys)
    assert "no finished run on record" in said(capsys, "--set", "n=5")
    assert UP_TO_DATE in said(capsys, "--set", "n=5")
    assert "stale: parameter n changed" in said(capsys, "--set", "n=6")
    now = said(capsys, "--set", "speed=2")
    assert "parameter n is gone" in now and "parameter speed is new" in now
    assert UP_TO_DATE in said(capsys)  # the run with its own
    assert (paths.RESULTS / "00_tiny" / "table.csv").read_text() == "n\n3\n"


def test_results_of_other_parameters_beside_those_asked_for_are_named(study, capsys):
    other = study.with_name("01_other.ipynb")
    other.write_text(study.read_text().replace("00_tiny", "01_other"))
    assert "beside them" not in said(capsys, "--set", "n=5")
    now = said(capsys, "--set", "n=6", "00_tiny")
    assert "another run: 01_other (stale: parameter n changed)" in now
    assert "beside them" not in said(capsys, "--set", "n=6")


def test_an_edit_while_it_runs_that_is_put_back_leaves_no_record(study, capsys, tmp_path):
    """It may have been imported meanwhile."""
    given = tmp_path / "mine.csv"
    given.write_text("a\n")
    append(study, "from pathlib import Path; path = Path(name); path.write_text('b')")
    append(study, "path.write_text('a\\n')")
    now = said(capsys, "--set", f"name={given}")
    assert "but it counts as not run: while it ran " in now and "mine.csv changed" in now
    assert given.read_text() == "a\n"
    assert "no finished run on record" in said(capsys, "--set", f"name={given}")


def test_jobs_of_a_failed_run_whose_code_changed_meanwhile_are_dropped(study, capsys, tmp_path):
    given = tmp_path / "mine.csv"
    given.write_text("a\n")
    keep = f"import os; from pathlib import Path; Path(os.environ[{ENVIRONMENT!r}]).mkdir()"
    append(study, keep.replace(".mkdir()", ".mkdir(parents=True)"))
    append(study, "Path(name).write_text('b')", "1 / 0")
    assert runner.main(["reproduce", "--set", f"name={given}"]) == 1
    assert not list((paths.CACHE / "sweeps").iterdir())


def test_two_at_once_are_refused(study, capsys):
    with runner._alone():
        assert runner.main(["reproduce"]) == 2
        assert "another process is running notebooks" in capsys.readouterr().err
        assert runner.main(["refresh"]) == 2
    assert "no finished run on record" in said(capsys)


def test_a_folder_that_the_user_named_for_finished_jobs_is_put_back(tiny, monkeypatch):
    monkeypatch.setenv(checkpoints.ENVIRONMENT, "mine")
    runner.reproduce({})
    assert os.environ[checkpoints.ENVIRONMENT] == "mine"


def test_a_file_that_a_parameter_names_counts(study, capsys, tmp_path):
    given = tmp_path / "mine.csv"
    given.write_text("a\n")
    said(capsys, "--set", f"name=trace:{given}")
    assert UP_TO_DATE in said(capsys, "--set", f"name=trace:{given}")
    given.write_text("b\n")
    assert "mine.csv changed" in said(capsys, "--set", f"name=trace:{given}")


def test_a_cluster_changes_no_number_and_so_no_record(study, capsys, monkeypatch):
    said(capsys)
    monkeypatch.setenv("MLLM_SCHED_DASK", "tcp://127.0.0.1:1")
    assert UP_TO_DATE in said(capsys)


def test_a_notebook_that_reads_results_is_stale_once_they_change(study, capsys, monkeypatch):
    monkeypatch.setattr(records, "READS", {"99_reader": ("results/*/table.csv",)})
    reader = study.with_name("99_reader.ipynb")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, reader)
    said(capsys)
    assert said(capsys).count("up to date") == 2
    append(study, STUDY.replace("[n]", "[n + 1]"))
    now = said(capsys)
    assert "stale: the code of 00_tiny.ipynb changed" in now
    assert "99_reader: stale: " in now and "00_tiny/table.csv changed" in now
    append(study, "'no other result'")
    now = said(capsys)
    assert "[2/2] 99_reader: up to date" in now


def test_what_a_notebook_reads_is_of_one_before_it():
    for name, patterns in records.READS.items():
        assert (paths.NOTEBOOKS / f"{name}.ipynb").exists()
        folders = [pattern.split("/")[1] for pattern in patterns if pattern.startswith("results/")]
        assert all(folder == "*" or folder < name for folder in folders)


def test_after_a_failure_what_was_finished_before_is_skipped(study, capsys):
    failing = study.with_name("01_failing.ipynb")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, failing)
    assert runner.main(["reproduce"]) == 1
    assert not (runner.EXECUTED / "01_failing.json").exists()
    capsys.readouterr()
    assert runner.main(["reproduce"]) == 1
    now = capsys.readouterr().out
    assert "00_tiny: up to date" in now and "01_failing: no finished run on record" in now


def test_a_run_that_fails_loses_the_record_of_the_one_before(study, capsys):
    said(capsys)
    append(study, "1 / 0")
    assert runner.main(["reproduce"]) == 1
    assert not (runner.EXECUTED / "00_tiny.json").exists()


def test_ctrl_c_ends_with_130_leaves_no_process_and_says_how_to_go_on(tiny, tmp_path):
    """SIGTERM and SIGHUP do what Ctrl-C does; see ``test_endings``."""
    append(tiny, f"import os\nopen({str(tmp_path / 'here')!r}, 'w').write(str(os.getpid()))")
    append(tiny, "import time\ntime.sleep(120)")
    program = f"""
import sys
from pathlib import Path
from mllm_sched import paths
from mllm_sched.study import notebooks as runner
here = Path({str(tmp_path)!r})
paths.NOTEBOOKS, paths.RESULTS = here / "notebooks", here / "results"
paths.BUILD, paths.CACHE, runner.EXECUTED = here / "build", here / "cache", here / "executed"
sys.exit(runner.main(["reproduce"]))
"""
    started = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=paths.ROOT
    )
    place = tmp_path / "here"
    wait_for(lambda: place.exists() and place.read_text(), 60)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130
    assert told.strip().splitlines()[-1] == runner.GO_ON
    assert not (tmp_path / "executed" / "00_tiny.json").exists()
    wait_for(lambda: not running(int(place.read_text())), 20)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_long_studies_are_told_where_to_keep_finished_jobs(tiny, capsys):
    """In one folder for all that the notebook depends on, gone once it came to its end."""
    keep = f"import os; from pathlib import Path; folder = Path(os.environ[{ENVIRONMENT!r}])"
    append(tiny, keep, "folder.mkdir(parents=True); (folder / 'job').write_text('1')", "1 / 0")
    assert runner.main(["reproduce"]) == 1
    (kept,) = (paths.CACHE / "sweeps").iterdir()
    assert kept.name.startswith("00_tiny-") and (kept / "job").exists()
    assert ENVIRONMENT not in os.environ
    notebook = nbformat.read(tiny, as_version=4)
    notebook.cells = notebook.cells[:-1]
    nbformat.write(notebook, tiny)
    said(capsys)
    assert [folder.name for folder in (paths.CACHE / "sweeps").iterdir()] == [kept.name]


def test_a_record_holds_every_part_by_itself(study, capsys):
    said(capsys)
    record = json.loads((runner.EXECUTED / "00_tiny.json").read_text())
    parts = {"the code of 00_tiny.ipynb", "mllm_sched/study/provenance.py", "requirements.lock"}
    assert parts | {"data/calibration/agx_orin.json"} <= set(record["parts"])
    assert len(record["written"]) == 3 and record["wall_s"] > 0


def test_the_notebooks_run_on_a_table_of_ones_own(tmp_path, monkeypatch):
    """As ``make reproduce DEVICE=trace:my.csv SEEDS=2`` does, but smaller."""
    monkeypatch.setattr(runner, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("MLLM_SCHED_RESULTS", "")  # restored afterwards
    table = paths.PUBLISHED / "orin_sweep_trace.csv"
    small = {"seeds": 2, "steps": 20, "no_cpu_seeds": 1, "replay_steps": 5, "replay_seeds": 2}
    small |= {
        "live_steps": 2,
        "live_encoder": "tiny-resnet",
        "limit_s": 0.3,
        "device": f"trace:{table}",
    }
    parameters = {name: str(value) for name, value in small.items()}
    runner.reproduce(parameters, ["00_quickstart", "04_scheduler_comparison"])
    executed = code_of(tmp_path / "executed" / "own" / "04_scheduler_comparison.ipynb")
    assert "lraspp_mobilenet_v3_large: " in str(executed[2].outputs)
    written = tmp_path / "results" / "04_scheduler_comparison" / "summary.csv"
    assert "Safe GP-UCB" in written.read_text()
