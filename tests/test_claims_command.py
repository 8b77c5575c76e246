"""`python -m mllm_sched.experiments.claims`, where something cannot be read or written."""

import pytest

from mllm_sched import atomic_io, paths
from mllm_sched.experiments import claims


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with the claims and documents, and no results yet."""
    for name in ("claims.yaml", *claims.DOCUMENTS):
        (tmp_path / name).write_bytes((paths.ROOT / name).read_bytes())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "results")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("claims.yaml", "- id: [1,"),
        ("claims.yaml", "claims:\n- id: alone"),
        ("README.md", "<!-- nobody:begin -->"),
        ("results/04_scheduler_comparison/claims.csv", "key,value\n"),
    ],
)
def test_what_is_wrong_is_one_line_and_ends_with_2(root, capsys, file, content):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content)
    assert claims.main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mllm-sched claims: ") and told.count("\n") == 1
    assert not (root / "results" / "claims.csv").exists()


def test_an_interrupted_write_leaves_the_documents_as_they_were(root, monkeypatch, capsys):
    def no_room(file):
        raise OSError("no space left")

    before = {name: (root / name).read_bytes() for name in claims.DOCUMENTS}
    monkeypatch.setattr(atomic_io.os, "fsync", no_room)
    assert claims.main([]) == 2
    assert "no space left" in capsys.readouterr().err
    assert {name: (root / name).read_bytes() for name in claims.DOCUMENTS} == before


def test_results_of_other_parameters_are_shown_but_never_written(root, monkeypatch, capsys):
    before = {name: (root / name).read_bytes() for name in claims.DOCUMENTS}
    monkeypatch.setattr(paths, "RESULTS", root / "build" / "results")
    assert claims.main([]) == 2
    assert "documents tell those on" in capsys.readouterr().err
    assert claims.main(["--print"]) == 0
    assert {name: (root / name).read_bytes() for name in claims.DOCUMENTS} == before
