"""Finished jobs of a long study on disk."""

import os

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


def test_results_from_a_cluster_are_kept_here(folder, plain, monkeypatch):
    given = {"n_workers": 1, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address=None, **given) as cluster:
        pd.testing.assert_frame_equal(play(dask=cluster.scheduler_address), plain)
    assert len(list(folder.iterdir())) == JOBS
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play(), plain)
    assert not calls


def test_random_tables_are_kept_too_and_may_come_from_a_cluster(folder, monkeypatch):
    trials = [Trial(RULES[0], "queueing", 48, tasks=20), Trial(RULES[1], "rough", 48, tasks=20)]
    table = play_all(trials, 6, n_jobs=1)
    assert len(list(folder.iterdir())) == JOBS
    calls = count_calls(monkeypatch)
    pd.testing.assert_frame_equal(play_all(trials, 6, n_jobs=1), table)
    assert not calls
    monkeypatch.delenv(ENVIRONMENT)
    given = {"n_workers": 1, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address=None, **given) as cluster:
        monkeypatch.setenv(spread.DASK_ENVIRONMENT, cluster.scheduler_address)
        pd.testing.assert_frame_equal(play_all(trials, 6), table)


def test_none_is_a_result_and_a_job_without_a_digest_is_left_out(tmp_path):
    store = Checkpoints(tmp_path / "kept")
    store.save(len, ("a",), None)
    assert store.load(len, ("a",)) is None
    assert store.load(len, ("b",)) is MISSING and store.load(max, ("a",)) is MISSING
    store.save(len, (lambda: 1,), 5)
    assert store.load(len, (lambda: 1,)) is MISSING


def test_what_was_given_up_is_removed_after_two_weeks(tmp_path):
    for name in ("old", "new"):
        Checkpoints(tmp_path / name).save(len, ("a",), 1)
    old = os.stat(tmp_path).st_mtime - checkpoints.OLD_S - 60
    os.utime(tmp_path / "old", (old, old))
    remove_old(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    remove_old(tmp_path / "nothing")
