"""Finished jobs of a long study on disk."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from distributed import LocalCluster

from mllm_sched.arms import ArmSpace
from mllm_sched.study import checkpoints, spread
from mllm_sched.study.checkpoints import ENVIRONMENT, MISSING, Checkpoints, remove_old
from mllm_sched.study.lineup import full_power_arms
from mllm_sched.study.runner import Rule
from mllm_sched.study.sweep import sweep
from mllm_sched.study.table_runs import Trial, play_all
from mllm_sched.tasks import Task

RULES = [Rule("Thompson", "thompson"), Rule("Safe", "safe-gp-ucb")]
NAP = """
import time
from mllm_sched.study.spread import spread

def nap(number):
    time.sleep(120 if number == 0 else 0.05)
    return number
"""
JOBS = 4  # two rules, seven seeds in jobs of five


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where jobs are kept, as ``make reproduce`` says."""
    monkeypatch.delenv(spread.DASK_ENVIRONMENT, raising=False)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "kept"))
    return tmp_path / "kept"


def play(rules=RULES, seeds=7, **settings):
    settings = {"n_jobs": 1, "limits": {"latency_s": 0.2}, **settings}
    trusted = full_power_arms(ArmSpace.agx_orin())
    task = Task("image", "clip-vit-l14-336")
    return sweep(rules, "agx-orin-sim", task, 8, seeds, trusted=trusted, **settings)


@pytest.fixture(scope="module")
def plain():
    """The table without anything kept."""
    return play()


def count_calls(monkeypatch):
    """Jobs that are really run, from now on."""
    calls, call = [], spread._call
    monkeypatch.setattr(spread, "_call", lambda *given: calls.append(given) or call(*given))
    return calls


def test_the_table_is_the_same_with_and_without(folder, plain, monkeypatch):
    pd.testing.assert_frame_equal(play(), plain)
    assert len(list(folder.iterdir())) == JOBS
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play(), plain)
    assert not calls


def test_without_being_asked_nothing_is_kept(tmp_path, monkeypatch, plain):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.chdir(tmp_path)
    play()
    assert not list(tmp_path.iterdir())


def test_a_slow_job_does_not_cost_the_others_when_one_interrupts(folder, tmp_path):
    (tmp_path / "naps.py").write_text(NAP)
    program = "from naps import nap, spread; spread(nap, [(n,) for n in range(30)], n_jobs=2)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    started = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (folder.exists() and len(list(folder.iterdir())) == 29):
        assert time.monotonic() < end and started.poll() is None
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    assert len(list(folder.iterdir())) == 29


def test_an_interrupted_sweep_goes_on_where_it_was(folder, plain, monkeypatch):
    call, calls = spread._call, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(*given)

    monkeypatch.setattr(spread, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play()
    monkeypatch.setattr(spread, "_call", call)
    assert len(list(folder.iterdir())) == 2
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play(), plain)
    assert len(calls) == JOBS - 2


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 5000])
def test_a_damaged_file_is_run_again(folder, plain, monkeypatch, content):
    play()
    damaged = next(folder.iterdir())
    damaged.write_bytes(content)
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play(), plain)
    assert len(calls) == 1 and damaged.read_bytes() != content


def test_a_folder_in_the_place_of_a_file_costs_its_job_and_no_more(folder, plain):
    play()
    damaged = next(folder.iterdir())
    damaged.unlink()
    (damaged / "within").mkdir(parents=True)
    with pytest.warns(UserWarning, match="a finished job is not kept: .*Is a directory"):
        pd.testing.assert_frame_equal(play(), plain)


def test_the_file_of_one_job_is_not_believed_for_another(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(len, ("a",), "of a")
    (of_a,) = tmp_path.iterdir()
    store.save(len, ("b",), "of b")
    (of_b,) = set(tmp_path.iterdir()) - {of_a}
    shutil.copy(of_b, of_a)
    assert store.load(len, ("a",)) is MISSING and store.load(len, ("b",)) == "of b"


def test_a_result_whose_class_is_gone_is_run_again(tmp_path, monkeypatch):
    (tmp_path / "gone.py").write_text("class Result: pass")
    monkeypatch.syspath_prepend(tmp_path)
    store = Checkpoints(tmp_path / "kept")
    store.save(len, ("a",), __import__("gone").Result())
    monkeypatch.delitem(sys.modules, "gone")
    (tmp_path / "gone.py").unlink()
    assert store.load(len, ("a",)) is MISSING


def test_what_was_packed_otherwise_is_run_again(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(len, ("a",), 1)
    (file,) = tmp_path.iterdir()
    body = pickle.dumps(1)  # not compressed, but with a digest that is right
    file.write_bytes(checkpoints._digest(file.name, body) + body)
    assert store.load(len, ("a",)) is MISSING


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(PermissionError, match=f"{tmp_path} belongs to another user: remove it"):
        Checkpoints(tmp_path)
    Checkpoints(tmp_path / "not there yet")


def test_a_file_with_one_bit_turned_is_run_again(folder, plain):
    play()
    damaged = next(folder.iterdir())
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    pd.testing.assert_frame_equal(play(), plain)
    assert damaged.read_bytes() == content


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": range(1, 8)},
        {"limits": {"latency_s": 0.3}},
        {"rules": [Rule("Thompson", "thompson", {"penalty": 1.0}), Rule("Safe", "ucb")]},
        {"device_settings": {"accounting": "marginal"}},
    ],
)
def test_other_arguments_are_other_jobs(folder, monkeypatch, changed):
    play()
    calls = count_calls(monkeypatch)
    play(**changed)
    assert len(calls) == JOBS


def test_more_seeds_use_the_jobs_that_are_the_same(folder, monkeypatch):
    play(seeds=5)
    calls = count_calls(monkeypatch)
    play(seeds=10)
    assert len(calls) == 2


@pytest.fixture(scope="module")
def cluster():
    """One worker with one thread: the least that is a cluster."""
    given = {"n_workers": 1, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address=None, **given) as cluster:
        yield cluster


def test_jobs_for_a_cluster_are_never_run_here(cluster):
    places = spread.spread(os.getpid, [()] * 3, dask=cluster.scheduler_address)
    assert len(places) == 3 and os.getpid() not in places


def test_results_from_a_cluster_are_kept_here(folder, plain, monkeypatch, cluster):
    pd.testing.assert_frame_equal(play(dask=cluster.scheduler_address), plain)
    assert len(list(folder.iterdir())) == JOBS
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play(), plain)
    assert not calls


def test_random_tables_are_kept_too_and_may_come_from_a_cluster(folder, monkeypatch, cluster):
    trials = [Trial(RULES[0], "queueing", 48, tasks=20), Trial(RULES[1], "rough", 48, tasks=20)]
    table = play_all(trials, 6, n_jobs=1)
    assert len(list(folder.iterdir())) == JOBS
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play_all(trials, 6, n_jobs=1), table)
    assert not calls
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv(spread.DASK_ENVIRONMENT, cluster.scheduler_address)
    calls.clear()
    pd.testing.assert_frame_equal(play_all(trials, 6), table)
    assert not calls


def test_none_is_a_result_and_a_job_without_a_digest_is_left_out(tmp_path):
    store = Checkpoints(tmp_path / "kept")
    store.save(len, ("a",), None)
    assert store.load(len, ("a",)) is None
    assert store.load(len, ("b",)) is MISSING and store.load(max, ("a",)) is MISSING
    for unnamed in (lambda: 1, threading.Lock()):
        store.save(len, (unnamed,), 5)
        assert store.load(len, (unnamed,)) is MISSING


def test_what_was_given_up_is_removed_after_two_weeks(tmp_path):
    for name in ("old", "new"):
        Checkpoints(tmp_path / name).save(len, ("a",), 1)
    old = os.stat(tmp_path).st_mtime - checkpoints.OLD_S - 60
    os.utime(tmp_path / "old", (old, old))
    remove_old(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    remove_old(tmp_path / "nothing")


def test_what_is_no_folder_of_jobs_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.utime(tmp_path / "file", (1, 1))
    remove_old(tmp_path)
    remove_old(tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}
