"""The notebook on a cluster of processes, byte for byte."""

import subprocess
import sys

from mllm_sched import paths

sys.path.insert(0, str(paths.ROOT / "benchmarks"))
from same_on_dask import differing

SMALL = ("steps=30", "no_cpu_seeds=1", "replay_steps=5", "replay_seeds=2", "live_steps=2")


def test_the_comparison_of_the_schedulers_is_the_same_on_dask_processes(tmp_path):
    """As `make reproduce SEEDS=1000 DASK=...`, but smaller."""
    program = [sys.executable, paths.ROOT / "benchmarks" / "same_on_dask.py"]
    given = [word for pair in SMALL for word in ("--set", pair)]
    done = subprocess.run(
        [*program, "--seeds", "3", "--workers", "2", *given, "--folder", tmp_path],
        capture_output=True,
        text=True,
        cwd=paths.ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "11 of 11 tables and figures are the same, byte for byte" in done.stdout
    assert "nothing to do" not in done.stdout
    tables = tmp_path / "dask" / "build" / "results" / "04_scheduler_comparison"
    assert {"summary.csv", "sensitivity.csv", "replay.csv"} <= {p.name for p in tables.iterdir()}


def test_a_table_that_differs_and_one_without_a_twin_are_named(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.csv").write_text("a\n")
        (tmp_path / name / "number.csv").write_text(f"{name}\n")
    (tmp_path / "one" / "alone.svg").write_text("<svg/>")
    compared, other = differing(tmp_path / "one", tmp_path / "other")
    assert (compared, other) == (3, ["alone.svg", "number.csv"])
