"""What several test modules share: exported encoders, and a small notebook for the repository's."""

import fcntl

import nbformat
import pytest

from mllm_sched import paths
from mllm_sched.pipeline.export import export_encoder
from mllm_sched.study import notebooks as runner

TINY = """\
n: int = 3  # how many
speed: float = 1.0  # metres per second
name: str = "a"  # whatever
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory, worker_id):
    """Where small encoders are exported to, once for all tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "encoders"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what one process exports, the others wait for
        for name in ("tiny-clip", "tiny-resnet"):
            export_encoder(name, "int8", folder=folder)
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with one small notebook; all that it writes goes beside it."""
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell(TINY, metadata={"tags": ["parameters"]})
    shown = nbformat.v4.new_code_cell("[n * speed, name]")
    notebook.cells = [nbformat.v4.new_markdown_cell("# Tiny"), parameters, shown]
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "00_tiny.ipynb"
    nbformat.write(notebook, path)
    runner.normalise(path)
    monkeypatch.setenv("MLLM_SCHED_RESULTS", "")  # restored afterwards
    monkeypatch.setattr(paths, "NOTEBOOKS", path.parent)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "build" / "cache")
    monkeypatch.setattr(runner, "EXECUTED", tmp_path / "executed")
    return path
