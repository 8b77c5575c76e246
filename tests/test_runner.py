import math
import pickle
from dataclasses import replace

import dask
import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster

from mllm_sched.arms import ArmSpace
from mllm_sched.devices import Drift, Noise, Throttling, open_device
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.comparison import full_power_arms
from mllm_sched.experiments.parallel import DASK_ENVIRONMENT
from mllm_sched.experiments.runner import Rule, RunStopped, run, sweep
from mllm_sched.schedulers import scheduler_names
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LIMITS = {"latency_s": 0.2}
TRUSTED = full_power_arms(ArmSpace.agx_orin())
COLUMNS = [
    *("scheduler", "seed", "step", "arm", "energy_j", "latency_s"),
    *("true_energy_j", "true_latency_s", "oracle_energy_j", "certified", "infeasible", "failed"),
]


class Faulty(SimulatedOrin):
    """Runs out of memory in its third task, and loses its connection after the seventh."""

    def run(self, arm, task):
        if self.step == 7:
            raise RuntimeError("lost connection")
        done = super().run(arm, task)
        failed = "out of memory" if self.step == 3 else ""
        return replace(done, failed=failed, **({"energy_j": math.nan} if failed else {}))


def play(name="thompson", device=None, steps=20, limits=LIMITS, **changes):
    device = device or open_device("agx-orin-sim")
    return run(Rule(name, name), device, TASK, steps, limits=limits, seeds=TRUSTED, **changes)


@pytest.mark.parametrize("name", scheduler_names())
def test_a_table_has_a_row_per_task_and_the_documented_columns(name):
    table = play(name, seed=4)
    assert list(table.columns) == COLUMNS
    assert table["step"].tolist() == list(range(20))
    assert set(table["scheduler"]) == {name} and set(table["seed"]) == {4}


def test_the_true_columns_are_the_means_of_the_arm_that_ran():
    device = open_device("agx-orin-sim", noise=Noise(0, 0))
    table, means = play("random", device), device.expected_all(TASK)
    assert (table["true_energy_j"] == means.energy_j[table["arm"]]).all()
    assert (table["true_latency_s"] == means.latency_s[table["arm"]]).all()
    for name in ("energy_j", "latency_s"):
        assert (table[name] == table[f"true_{name}"]).all()


def test_limits_that_no_arm_can_meet_together_are_named():
    with pytest.raises(ValueError, match="no arm can meet all of them"):
        play(limits={"latency_s": 0.06, "energy_j": 1.9})


def test_a_device_that_breaks_leaves_the_tasks_done_before():
    with pytest.raises(RunStopped, match="stopped after 7 tasks: lost connection") as caught:
        play(device=Faulty())
    pd.testing.assert_frame_equal(caught.value.table, play(device=Faulty(), steps=7))
    back = pickle.loads(pickle.dumps(caught.value))  # as on the way back from a worker
    assert str(back) == str(caught.value) and len(back.table) == 7


def test_a_failed_measurement_is_kept_and_stops_nothing():
    table = play(device=Faulty(), steps=7)
    assert table["failed"].tolist() == ["", "", "out of memory", "", "", "", ""]
    assert table["energy_j"].isna().tolist() == [False, False, True, False, False, False, False]
    assert table["true_energy_j"].notna().all()


@pytest.mark.parametrize("name", ["thompson", "epsilon-greedy", "random"])
def test_different_seeds_choose_differently(name):
    arms = [play(name, seed=seed, steps=150)["arm"].to_numpy() for seed in (0, 1)]
    assert (arms[0] != arms[1]).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"drift": [Drift("gpu", 1.5, start=5), Drift("dla", 1.5, start=10)]},
        {"throttling": Throttling(kelvin_per_w=5.0, tau_s=0.5, limit_c=40.0)},
    ],
)
def test_the_oracle_of_a_changing_board_changes(settings):
    table = play("oracle", open_device("agx-orin-sim", **settings), limits={"latency_s": 1.0})
    assert table["oracle_energy_j"].nunique() > 1
    assert np.array_equal(table["true_energy_j"], table["oracle_energy_j"])


def test_a_board_that_drifts_beyond_the_limit_leaves_the_tasks_done_before():
    slower = [Drift(name, 100.0, start=7) for name in ("gpu", "cpu", "dla")]
    with pytest.raises(RunStopped, match="stopped after 7 tasks: limit latency_s") as caught:
        play(device=open_device("agx-orin-sim", drift=slower))
    assert len(caught.value.table) == 7


# -- Sweeps

# Neither in the order of the alphabet nor of their names.
RULES = [Rule("Thompson", "thompson"), Rule("Fixed", "fixed"), Rule("Safe", "safe-gp-ucb")]


def many(rules=RULES, seeds=7, steps=10, **settings):
    settings = {"trusted": TRUSTED, **settings}
    return sweep(rules, "agx-orin-sim", TASK, steps, seeds, limits=LIMITS, **settings)


@pytest.fixture(scope="module")
def local():
    return many(n_jobs=1)


@pytest.fixture(scope="module")
def cluster():
    given = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address=None, **given) as cluster:
        yield cluster


def jobs_done(cluster):
    moves = [(old, new) for _, old, new, *_ in cluster.scheduler.transition_log]
    return moves.count(("processing", "memory"))


def test_a_sweep_is_ordered_by_rule_seed_and_step(local):
    keys = local[["scheduler", "seed", "step"]].astype({"scheduler": str}).to_numpy().tolist()
    wanted = [[rule.label, seed, step] for rule in RULES for seed in range(7) for step in range(10)]
    assert keys == wanted
    assert local["scheduler"].cat.categories.tolist() == ["Thompson", "Fixed", "Safe"]


def test_all_rules_of_a_seed_meet_the_same_noise():
    table = many([Rule("one", "fixed"), Rule("other", "fixed")], seeds=2, n_jobs=1)
    one, other = (group["energy_j"].to_numpy() for _, group in table.groupby("scheduler"))
    assert (one == other).all()
    assert len(set(one)) == 20  # neither tasks nor seeds repeat each other


@pytest.mark.parametrize(
    ("rules", "seeds", "message"),
    [
        ([Rule("UCB", "ucb"), Rule("UCB", "random")], 1, "two rules share a label: .*'UCB', 'UCB'"),
        (RULES, 0, "seeds=0: give at least one"),
        (RULES, [2, 2], "seeds=.*none twice"),
    ],
)
def test_what_cannot_be_swept_is_refused(rules, seeds, message):
    with pytest.raises(ValueError, match=message):
        many(rules, seeds)


@pytest.mark.slow
def test_two_processes_give_the_same_table(local):
    pd.testing.assert_frame_equal(many(n_jobs=2), local)


@pytest.mark.slow
def test_a_cluster_gives_the_same_table(cluster, local, monkeypatch):
    pd.testing.assert_frame_equal(many(dask=cluster.scheduler_address), local)
    before = jobs_done(cluster)
    assert before == 6  # three rules, seven seeds in jobs of five
    monkeypatch.setenv(DASK_ENVIRONMENT, cluster.scheduler_address)
    pd.testing.assert_frame_equal(many(), local)
    assert jobs_done(cluster) - before == 6


def test_an_address_where_no_cluster_is_says_so(monkeypatch):
    quick = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quick, pytest.raises(OSError, match=r"no Dask scheduler at 'tcp://127\.0\.0\.1:1'"):
        many(dask="tcp://127.0.0.1:1")
    monkeypatch.setenv(DASK_ENVIRONMENT, "nonsense")
    with pytest.raises(OSError, match=f"'nonsense' .*{DASK_ENVIRONMENT}"):
        many()
