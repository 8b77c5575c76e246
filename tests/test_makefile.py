"""What the targets of the Makefile call, in a folder of their own with a stand-in for Python."""

import os
import subprocess
import sys

import pytest

from mllm_sched import paths

# Says how it was called. As nbval it changes a result, where it is told that results are.
STAND_IN = f"""#!/bin/sh
case "$*" in
  *study.held*) exec {sys.executable} "$@" ;;
  *--nbval*) echo "a,2" >> "$MLLM_SCHED_RESULTS/study/table.csv" ;;
esac
echo "called: $*; dask: $MLLM_SCHED_DASK"
"""


@pytest.fixture
def make(tmp_path):
    """Runs ``make``; its answer."""
    for name in ("bin/python", "bin/jupyter"):
        program = tmp_path / ".venv" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(STAND_IN)
        program.chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml", ".venv/.installed"):
        (tmp_path / name).write_text("")
    (tmp_path / "results" / "study").mkdir(parents=True)
    (tmp_path / "results" / "study" / "table.csv").write_text("a,n\nb,1\n")

    def call(*words, **environment):
        ours = {key for key in os.environ if "MAKE" in key} | {"PYTHON"}  # of a make around us
        clean = {key: text for key, text in os.environ.items() if key not in ours}
        return subprocess.run(
            ["make", "-f", paths.ROOT / "Makefile", "-o", "browser", *words],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(paths.ROOT), "MLLM_SCHED_DASK": "", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_a_changed_result_fails_every_time_and_the_results_stay(make, tmp_path):
    for _ in range(2):
        done = make("test")
        assert done.returncode
        assert "study/table.csv: line 3: nothing became 'a,2'" in done.stdout
    assert (tmp_path / "results" / "study" / "table.csv").read_text() == "a,n\nb,1\n"


def test_what_stands_in_the_call_is_a_parameter_and_what_the_environment_holds_is_not(make):
    given = {"SEEDS": "2", "STEPS": "3", "DEVICE": "host", "ENCODER": "a", "LIMIT": "0.1"}
    given |= {"SET": "sizes=1 n=2", "NOTEBOOKS": "00_quickstart", "FORCE": "1"}
    called = make("reproduce", *(f"{name}={text}" for name, text in given.items())).stdout
    for words in ("seeds=2", "steps=3", "device=host", "encoder=a", "limit_s=0.1", "sizes=1"):
        assert f"--set {words} " in called
    assert "reproduce --force " in called and "--set n=2 00_quickstart; " in called
    assert "called: -m mllm_sched.study.claims --print; " in called
    called = make("reproduce", **given).stdout
    assert "called: -m mllm_sched.study.notebooks reproduce; " in called
    assert "called: -m mllm_sched.study.claims; " in called


def test_the_address_of_a_cluster_may_be_exported_or_stand_in_the_call(make):
    assert "dask: tcp://there:1\n" in make("reproduce", MLLM_SCHED_DASK="tcp://there:1").stdout
    called = make("reproduce", "DASK=tcp://here:1", MLLM_SCHED_DASK="tcp://there:1")
    assert "dask: tcp://here:1\n" in called.stdout


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("exit 127", "python cannot be run; call: make PYTHON="),
        ('[ "$2" = "" ]', "python is older than Python 3.11; call: make PYTHON="),
    ],
)
def test_a_python_that_is_not_there_or_too_old_is_told(make, tmp_path, python, told):
    own = tmp_path / "python"
    own.write_text(f"#!/bin/sh\n{python}\n")
    own.chmod(0o755)
    done = make("env", "VENV=elsewhere", f"PYTHON={own}")
    assert done.returncode and told in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_where_there_is_no_python_of_that_name_python3_will_do(make, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").write_text('#!/bin/sh\necho "python3 $*"\n')
    (programs / "python3").chmod(0o755)
    (programs / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (programs / "python3.11").chmod(0o755)
    place = f"{programs}:{os.environ['PATH']}"
    assert "python3 -m venv elsewhere" in make("env", "VENV=elsewhere", PATH=place).stdout


def test_jupyterlab_opens_for_root_too(make):
    assert ("--allow-root" in make("lab").stdout) == (os.geteuid() == 0)


def test_the_page_is_served_on_the_loopback_alone():
    done = subprocess.run(["make", "-n", "app"], cwd=paths.ROOT, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if "voila" in line and ".ipynb" in line)
    assert "--Voila.ip=127.0.0.1" in line
