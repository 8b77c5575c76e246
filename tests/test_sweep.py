import dask
import pandas as pd
import pytest
from distributed import LocalCluster

from mllm_sched.arms import ArmSpace
from mllm_sched.devices import Drift
from mllm_sched.experiments.lineup import full_power_arms
from mllm_sched.experiments.parallel import DASK_ENVIRONMENT
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LIMITS = {"latency_s": 0.2}
SPACE = ArmSpace.agx_orin()
# Neither in the order of the alphabet nor of their names.
RULES = [Rule("Thompson", "thompson"), Rule("Fixed", "fixed"), Rule("Safe", "safe-gp-ucb")]


@pytest.fixture(autouse=True)
def _no_cluster_of_the_developer(monkeypatch):
    monkeypatch.delenv(DASK_ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def cluster():
    given = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address=None, **given) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def local():
    return play(n_jobs=1)


def play(rules=RULES, seeds=7, steps=10, **settings):
    settings = {"trusted": full_power_arms(SPACE), **settings}
    return sweep(rules, "agx-orin-sim", TASK, steps, seeds, limits=LIMITS, **settings)


def jobs_done(cluster):
    moves = [(old, new) for _, old, new, *_ in cluster.scheduler.transition_log]
    return moves.count(("processing", "memory"))


def test_the_table_is_ordered_by_rule_seed_and_step(local):
    keys = local[["scheduler", "seed", "step"]].astype({"scheduler": str}).to_numpy().tolist()
    wanted = [[rule.label, seed, step] for rule in RULES for seed in range(7) for step in range(10)]
    assert keys == wanted
    assert local["scheduler"].cat.categories.tolist() == ["Thompson", "Fixed", "Safe"]


def test_the_table_does_not_depend_on_the_number_of_processes(local):
    pd.testing.assert_frame_equal(play(n_jobs=2), local)


def test_a_seed_stands_for_itself(local):
    alone = play(RULES[:1], seeds=[6], n_jobs=1)
    same = local.query("scheduler == 'Thompson' and seed == 6")
    assert alone["energy_j"].tolist() == same["energy_j"].tolist()


def test_all_rules_of_a_seed_meet_the_same_noise():
    table = play([Rule("one", "fixed"), Rule("other", "fixed")], seeds=2, n_jobs=1)
    one, other = (group["energy_j"].to_numpy() for _, group in table.groupby("scheduler"))
    assert (one == other).all()
    assert len(set(one)) == 20  # neither tasks nor seeds repeat each other


def test_settings_reach_the_device():
    slower = {"drift": [Drift("gpu", 1.5, start=5)]}
    table = play(RULES[1:2], seeds=1, n_jobs=1, device_settings=slower)
    assert table["true_latency_s"].nunique() == 2


@pytest.mark.parametrize(
    ("rules", "seeds", "message"),
    [
        ([Rule("UCB", "ucb"), Rule("UCB", "random")], 1, "two rules share a label: .*'UCB', 'UCB'"),
        ([], 1, "rules=.*at least one"),
        (RULES, 0, "seeds=0: give at least one"),
        (RULES, [], "seeds=.*: give at least one"),
    ],
)
def test_what_cannot_be_swept_is_refused(rules, seeds, message):
    with pytest.raises(ValueError, match=message):
        play(rules, seeds)


def test_a_cluster_of_processes_gives_the_same_table(cluster, local):
    before = jobs_done(cluster)
    pd.testing.assert_frame_equal(play(dask=cluster.scheduler_address), local)
    assert jobs_done(cluster) - before == 6  # three rules, seven seeds in jobs of five


def test_the_environment_names_the_cluster(cluster, local, monkeypatch):
    before = jobs_done(cluster)
    monkeypatch.setenv(DASK_ENVIRONMENT, cluster.scheduler_address)
    pd.testing.assert_frame_equal(play(), local)
    assert jobs_done(cluster) - before == 6


def test_after_a_cluster_runs_stay_here_again(cluster, local):
    play(RULES[1:2], seeds=1, dask=cluster.scheduler_address)
    before = jobs_done(cluster)
    pd.testing.assert_frame_equal(play(n_jobs=1), local)
    assert jobs_done(cluster) == before


def test_an_address_where_no_cluster_is_says_so(monkeypatch):
    quick = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quick, pytest.raises(OSError, match=r"no Dask scheduler at 'tcp://127\.0\.0\.1:1'"):
        play(dask="tcp://127.0.0.1:1")
    monkeypatch.setenv(DASK_ENVIRONMENT, "nonsense")
    with pytest.raises(OSError, match=f"'nonsense' .*{DASK_ENVIRONMENT}"):
        play()
