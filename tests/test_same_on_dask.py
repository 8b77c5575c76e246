"""The notebook on a cluster of processes, byte for byte."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mllm_sched import paths
from mllm_sched.pipeline.export import PRECISIONS, export_encoder
from mllm_sched.study.notebooks import GO_ON

sys.path.insert(0, str(paths.ROOT / "benchmarks"))
from same_on_dask import cluster, differing

PROGRAM = [sys.executable, str(paths.ROOT / "benchmarks" / "same_on_dask.py"), "--workers", "2"]
SMALL = ("steps=30", "no_cpu_seeds=1", "replay_steps=5", "replay_seeds=2", "live_steps=2")
ENCODER = "tiny-resnet"  # a large one takes half a minute to export
SMALL += (f"live_encoder={ENCODER}",)


def command(folder, *pairs):
    given = [word for pair in pairs for word in ("--set", pair)]
    return [*PROGRAM, "--seeds", "3", *given, "--folder", str(folder)]


def compare(folder, *pairs):
    return subprocess.run(command(folder, *pairs), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, cache):
    """As `make reproduce SEEDS=1000 DASK=...`, but smaller; the folder, and what was said."""
    folder = tmp_path_factory.mktemp("compared")
    for precision in PRECISIONS:
        export_encoder(ENCODER, precision, folder=cache)
    for name in ("local", "dask"):  # an export takes longer than all that is compared
        shutil.copytree(cache, folder / name / "build" / "cache")
    return folder, compare(folder, *SMALL)


def test_the_comparison_of_the_schedulers_is_the_same_on_dask_processes(compared):
    folder, done = compared
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    tables = folder / "dask" / "build" / "results" / "04_scheduler_comparison"
    names = {path.name for path in tables.iterdir()} - {"provenance.json"}
    assert {"summary.csv", "without_cpu.csv", "replay.csv", "result.svg"} <= names
    said = f"{len(names)} of {len(names)} tables and figures are the same, byte for byte"
    assert said in done.stdout


def test_workers_that_had_nothing_to_do_are_no_success(compared):
    again = compare(compared[0], *SMALL)
    assert again.returncode == 1
    assert "the workers had nothing to do" in again.stdout


def test_a_run_that_fails_gives_its_status_and_no_traceback(tmp_path):
    done = compare(tmp_path, "steps=none")
    assert done.returncode == 2
    assert done.stderr == "04_scheduler_comparison: steps=none: expected int\n"


def kept(folder):
    """Jobs that were finished and are kept."""
    return list(folder.rglob("sweeps/*/[!.]*"))


def test_ctrl_c_lets_the_run_keep_what_it_has_and_ends_everything(compared):
    folder, _ = compared
    shutil.rmtree(folder / "dask")  # to be run again; what ran on this machine is up to date
    process = subprocess.Popen(
        command(folder, *SMALL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not kept(folder) and time.monotonic() < end:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try:
        said = process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:  # one was lost once, under load; a person presses again
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and GO_ON in said
    assert not re.search(r"same_on_dask\.py|nanny", said)  # no traceback of its own
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert kept(folder)


def test_the_cluster_listens_on_the_loopback_alone(tmp_path):
    with cluster(2, tmp_path):
        me = psutil.Process()
        family = [me, *me.children(recursive=True)]
        heard = [to for one in family for to in one.net_connections() if to.status == "LISTEN"]
    assert len(heard) >= 3  # the scheduler's and the workers'
    assert {to.laddr.ip for to in heard} == {"127.0.0.1"}


def test_a_table_that_differs_and_one_without_a_twin_are_named(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.csv").write_text("a\n")
        (tmp_path / name / "number.csv").write_text(f"{name}\n")
    (tmp_path / "one" / "alone.svg").write_text("<svg/>")
    (tmp_path / "other" / "alone.png").write_bytes(b"png")
    compared, other = differing(tmp_path / "one", tmp_path / "other")
    assert (compared, other) == (4, ["alone.png", "alone.svg", "number.csv"])
