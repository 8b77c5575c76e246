"""What the targets of the Makefile do, in a small copy of the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from waiting import until

from mllm_sched import paths

# Leaves a line when it begins and one when it ends, and results in which its parameter stands.
WORK = """\
import os, pathlib, time
from mllm_sched import paths
os.chdir(paths.ROOT)
log = open("{name}.log", "a", buffering=1)
print(time.time(), os.getpid(), file=log)
folder = paths.RESULTS / "{name}"
folder.mkdir(parents=True, exist_ok=True)
(folder / "n.txt").write_text(str(n))
{more}
print(time.time(), file=log)
"""
# Waits until another notebook runs at the same time.
MEET = """\
end = time.time() + 60
while not pathlib.Path("{other}.log").exists():
    assert time.time() < end, "alone"
    time.sleep(0.1)
"""
EDITS = """\
assert (paths.RESULTS / "10_savings" / "runs.csv").exists()
pathlib.Path("notebooks/12_explorer.ipynb").touch()
"""
CLAIMS = "claims: [{id: a, claim: It is fast, paper: fast, metric: none, untestable: No board.}]"


class Copy:
    """A repository of small notebooks, with this one's Makefile and packages."""

    def __init__(self, root):
        self.root = root
        (root / "notebooks").mkdir()
        (root / "mllm_sched").mkdir()  # stands for the sources; what is imported is the real one
        (root / "data").mkdir()
        (root / "mllm_sched" / "rule.py").write_text("")
        (root / "data" / "SHA256SUMS").write_text(f"{'0' * 64}  ./table.csv\n")
        for name in ("data/table.csv", "requirements.lock", "pyproject.toml"):
            (root / name).write_text("")
        for name in ("Makefile", "README.md", "REPORT.md"):
            (root / name).write_bytes((paths.ROOT / name).read_bytes())
        (root / "claims.yaml").write_text(CLAIMS)
        (root / "quick").mkdir()  # what conftest.py leaves out, left out of every program too
        (root / "quick" / "rfc3987_syntax.py").write_text("raise ImportError")
        (root / ".venv").mkdir()
        for part in Path(sys.prefix).iterdir():
            (root / ".venv" / part.name).symlink_to(part)
        (root / ".venv" / ".installed").unlink(missing_ok=True)
        (root / ".venv" / ".installed").write_text("")

    def notebook(self, name, more=""):
        cells = [
            nbformat.v4.new_code_cell("n: int = 3", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(WORK.format(name=name, more=more)),
        ]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(made, self.root / "notebooks" / f"{name}.ipynb")

    def start(self, *words):
        ours = {key for key in os.environ if "MAKE" in key} | {"PYTHON", "MLLM_SCHED_RESULTS"}
        clean = {key: text for key, text in os.environ.items() if key not in ours}
        found = f"{self.root / 'quick'}{os.pathsep}{paths.ROOT}"
        places = {"PYTHONPATH": found, "MLLM_SCHED_ROOT": str(self.root)}
        return subprocess.Popen(
            ["make", "-o", "browser", *words],
            cwd=self.root,
            env={**clean, **places},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def make(self, *words):
        process = self.start(*words)
        said = process.communicate()[0]
        return process.returncode, said

    def stale(self, *words):
        """Notebooks that `make reproduce` would run now."""
        return re.findall(r"papermill.* notebooks/(\w+)", self.make("-n", "reproduce", *words)[1])

    def done(self, name, made="build"):
        """Leave a stamp as of a run just now."""
        self.stamp(name, made).parent.mkdir(parents=True, exist_ok=True)
        self.stamp(name, made).touch()

    def stamp(self, name, made="build"):
        return self.root / made / "done" / name

    def times(self, name):
        """When a notebook began and ended."""
        return [float(line.split()[0]) for line in (self.root / f"{name}.log").open()]


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A copy in which all notebooks were run, two at a time, and what was said."""
    copy = Copy(tmp_path_factory.mktemp("ran"))
    copy.notebook("01_fails", MEET.format(other="10_savings") + "1 / 0")
    copy.notebook("10_savings", MEET.format(other="01_fails") + "(folder / 'runs.csv').touch()")
    copy.notebook("12_explorer", EDITS)
    copy.done("01_fails")  # by a run before
    copy.status, copy.said = copy.make("-k", "-j2", "reproduce", "FORCE=1")
    return copy


def test_a_failing_cell_leaves_no_stamp_and_the_same_command_goes_on(ran):
    assert ran.status != 0 and "ZeroDivisionError" in ran.said
    assert "1 / 0" in (ran.root / "build" / "notebooks" / "01_fails.ipynb").read_text()
    assert ran.stale() == ["01_fails", "12_explorer"]  # the latter was edited while it ran


def test_two_run_at_a_time_and_who_reads_waits_for_who_writes(ran):
    assert "ZeroDivisionError" in ran.said and "AssertionError" not in ran.said
    assert ran.times("12_explorer")[0] > ran.times("10_savings")[1]


def test_the_longest_begin_first(copy):
    for name in ("00_tiny", "08_ablations"):
        copy.notebook(name)
    assert copy.stale() == ["08_ablations", "00_tiny"]


def test_what_is_up_to_date_is_not_run_again(ran):
    words = ["reproduce", "NOTEBOOKS=10_savings"]
    status, said = ran.make(*words)
    assert (status, said) == (0, "1 notebooks up to date: build/notebooks, results\n")
    assert "No board" in (ran.root / "results" / "claims.csv").read_text()
    assert "experiments.claims" in ran.make("-n", *words, "FORCE=1")[1]


def test_who_reads_runs_again_once_what_it_reads_has_changed(ran):
    ran.done("12_explorer")
    assert ran.stale("NOTEBOOKS=10_savings 12_explorer") == []
    (ran.root / "results" / "10_savings" / "runs.csv").touch()
    assert ran.stale("NOTEBOOKS=10_savings 12_explorer") == ["12_explorer"]


def test_parameters_in_the_call_have_a_folder_of_their_own(ran):
    documents = {name: (ran.root / name).read_bytes() for name in ("README.md", "REPORT.md")}
    words = ["NOTEBOOKS=10_savings", "SET=n=4"]
    status, said = ran.make("reproduce", *words)
    assert status == 0 and "not testable here" in said
    folder = ran.root / "build" / "runs" / "n=4"
    assert (folder / "results" / "10_savings" / "n.txt").read_text() == "4"
    assert (folder / "notebooks" / "10_savings.ipynb").exists()
    assert (ran.root / "results" / "10_savings" / "n.txt").read_text() == "3"
    assert documents == {name: (ran.root / name).read_bytes() for name in documents}
    assert not ran.stale(*words) and ran.stale(words[0], "SET=n=5")


def test_an_unknown_parameter_or_notebook_is_refused_before_anything_runs(copy):
    copy.notebook("00_tiny")
    status, said = copy.make("reproduce", "SEEDS=3")
    assert status != 0 and "no notebook has the parameter 'seeds':\n  00_tiny: n\n" in said
    assert "papermill" not in said
    status, said = copy.make("reproduce", "NOTEBOOKS=00_tiny 05_none")
    assert status != 0 and "NOTEBOOKS=05_none: expected some of 00_tiny" in said


def test_whatever_a_notebook_depends_on_makes_it_stale(copy):
    copy.notebook("00_tiny")
    needed = ["notebooks/00_tiny.ipynb", "mllm_sched/rule.py", "data/table.csv"]
    for name in (*needed, "requirements.lock"):
        copy.done("00_tiny")
        assert not copy.stale()
        (copy.root / name).touch()
        assert copy.stale() == ["00_tiny"], name
    copy.done("00_tiny")
    for name in ("data/of_my_board.csv", "mllm_sched/.rule.py.swp", "README.md"):
        (copy.root / name).touch()
        assert not copy.stale(), name
    assert copy.stale("FORCE=1") == ["00_tiny"]


def test_a_run_that_is_ended_leaves_no_stamp_and_no_kernel(copy):
    copy.notebook("00_tiny", "time.sleep(60)")
    process = copy.start("reproduce")
    log = copy.root / "00_tiny.log"
    until(lambda: log.exists() and "\n" in log.read_text())  # its cell runs
    kernel = int(log.read_text().split()[1])
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode != 0 and not copy.stamp("00_tiny").exists()
    psutil.wait_procs([one for one in family if one.pid == kernel], timeout=15)
    assert not psutil.pid_exists(kernel)


def test_names_of_parameters_and_folders_are_safe(copy):
    copy.notebook("00_tiny")
    (copy.root / "my.csv").write_text("")
    words = ["DEVICE=trace:my.csv", "SET=a=[1,2] b='x'", "ENCODER=c"]
    shown = copy.make("-n", "reproduce", *words)[1]
    assert "--set 'a=[1,2]' --set 'b='\\''x'\\''' --set 'device=trace:my.csv' --set 'e" in shown
    made = re.search(r"papermill.* notebooks/00_tiny.ipynb (\S+)/notebooks", shown)[1]
    assert made.startswith("build/runs/a=-1,2-_b=-x-_device=trace-my.csv_encoder=c-")
    copy.done("00_tiny", made)
    assert not copy.stale(*words)
    (copy.root / "my.csv").touch()
    assert copy.stale(*words) == ["00_tiny"]


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("exit 127", "python cannot be run; call: make PYTHON="),
        ('[ "$2" = "" ]', "python is older than Python 3.11; call: make PYTHON="),
    ],
)
def test_a_python_that_is_not_there_or_too_old_is_told(copy, python, told):
    own = copy.root / "python"
    own.write_text(f"#!/bin/sh\n{python}\n")
    own.chmod(0o755)
    status, said = copy.make("env", "VENV=elsewhere", f"PYTHON={own}")
    assert status and told in said
    assert not (copy.root / "elsewhere").exists()
