"""Which files of the package a notebook depends on."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mllm_sched import paths
from mllm_sched.study import dependencies
from mllm_sched.study.dependencies import PACKAGE, code_files
from mllm_sched.study.notebooks import notebooks


def needed(source):
    return {path.relative_to(PACKAGE).as_posix() for path in code_files(source)}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of ours."""
    home = tmp_path / "pack"
    files = {
        "__init__.py": "",
        "a.py": "def late():\n    from . import b\n",
        "b.py": "COMMAND = ['python', '-m', 'pack.tool.run']\n",
        "alone.py": '"""Not pack.a, which only prose names."""\n',
        "tool/__init__.py": "",
        "tool/run.py": "import pack.tool.other as other\nfrom ..c import thing\n",
        "tool/other.py": "",
        "tool/programs/sh": "echo",
        "tool/__pycache__/run.pyc": "",
        "c.py": "thing = f'{0}'\n",
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    monkeypatch.setattr(dependencies, "PACKAGE", home)
    monkeypatch.setattr(dependencies, "NAMED", dependencies.re.compile(r"\bpack(?:\.\w+)*"))
    dependencies._names.cache_clear()
    yield lambda source: {path.relative_to(home).as_posix() for path in code_files(source)}
    dependencies._names.cache_clear()


def test_imports_count_wherever_they_stand_and_so_do_modules_that_are_started(package):
    tool = {"tool/__init__.py", "tool/run.py", "tool/other.py", "tool/programs/sh"}
    assert package("from pack.a import late") == {"__init__.py", "a.py", "b.py", "c.py"} | tool
    assert package("import pack.c") == {"__init__.py", "c.py"}
    assert package("run('pack.c')") == {"__init__.py", "c.py"}


def test_prose_and_what_is_of_another_package_do_not_count(package):
    assert package("from pack import alone") == {"__init__.py", "alone.py"}
    assert package("import numpy\nfrom package import a") == set()


def test_code_that_is_not_python_may_need_everything(package):
    assert {"alone.py", "c.py", "tool/programs/sh"} <= package("%matplotlib inline")
    assert not any("__pycache__" in name for name in package("%matplotlib inline"))


@pytest.mark.parametrize("name", ["01_decoupling", "03_measurement", "08_ablations"])
def test_whatever_the_imports_of_a_notebook_load_is_found_by_reading(name):
    (path,) = notebooks([name])
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    imports = cells[1].source.split("plots.use_style")[0]
    shown = "import sys\nfor name, module in sys.modules.items():\n"
    shown += "    if name.startswith('mllm_sched') and module.__file__: print(module.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", imports + shown],
        capture_output=True,
        text=True,
        check=True,
        cwd=paths.ROOT,
    )
    loaded = {Path(line) for line in done.stdout.splitlines()}
    assert len(loaded) > 10
    assert loaded <= set(code_files("\n".join(cell.source for cell in cells)))


def test_a_notebook_does_not_depend_on_what_it_never_uses():
    found = needed("from mllm_sched.study.metrics import interval")
    assert "study/metrics.py" in found
    assert not {"cli.py", "study/notebooks.py", "pipeline/client.py"} & found


def test_what_an_editor_leaves_behind_does_not_count(package, tmp_path):
    before = package("import pack.tool")
    for name in (".sh.swp", "sh~", "#sh#"):
        (tmp_path / "pack" / "tool" / "programs" / name).write_text("")
    assert package("import pack.tool") == before
