"""Finished jobs of a long study are kept while its notebook runs, where they are asked for."""

import pytest

from mllm_sched import paths
from mllm_sched.experiments import parallel
from mllm_sched.experiments.parallel import KEPT_ENVIRONMENT, spread


def square(number, folder):
    """Leaves a file for every call; fails while there is one called `broken`."""
    if number == 2 and (folder / "broken").exists():
        raise OSError("no space left")
    with (folder / "calls").open("a") as calls:
        calls.write(f"{number} ")
    return number**2


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(KEPT_ENVIRONMENT, str(tmp_path / "kept"))
    monkeypatch.setattr(parallel, "MEMORY", parallel._memory())
    return tmp_path


def test_after_an_interruption_finished_jobs_are_not_run_again(kept):
    (kept / "broken").touch()
    jobs = [(number, kept) for number in range(4)]
    with pytest.raises(OSError, match="no space left"):
        spread(square, jobs, n_jobs=1)
    (kept / "broken").unlink()
    assert spread(square, jobs, n_jobs=1) == [0, 1, 4, 9]
    assert (kept / "calls").read_text() == "0 1 2 3 "


def test_edited_code_never_meets_old_results(kept, monkeypatch):
    (kept / "package").mkdir()
    monkeypatch.setattr(paths, "PACKAGE", kept / "package")
    (kept / "package" / "rule.py").write_text("1")
    folders = [parallel._memory().location]
    (kept / "package" / "rule.py").write_text("2")
    folders += [parallel._memory().location]
    assert folders[0] != folders[1]


def test_nothing_is_kept_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(KEPT_ENVIRONMENT, raising=False)
    monkeypatch.setattr(parallel, "MEMORY", parallel._memory())
    for _ in range(2):
        assert spread(square, [(3, tmp_path)], n_jobs=1) == [9]
    assert (tmp_path / "calls").read_text() == "3 3 "
