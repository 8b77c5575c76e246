import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mllm_sched.arms import ArmSpace
from mllm_sched.devices import Drift, Noise, Throttling, open_device
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.lineup import full_power_arms
from mllm_sched.experiments.metrics import per_run
from mllm_sched.experiments.runner import Rule, RunStopped, run
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


def play(name="thompson", device=None, task=TASK, steps=20, limits=LIMITS, **changes):
    device = device or open_device("agx-orin-sim")
    return run(Rule(name, name), device, task, steps, limits=limits, seeds=TRUSTED, **changes)


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


def test_the_oracle_takes_exactly_its_own_energy_and_never_violates():
    binding = {"latency_s": 0.06}  # without it another arm takes less
    result = per_run(play("oracle", steps=50, limits=binding), binding).iloc[0]
    assert result["energy_over_oracle"] == 1 and result["regret_j"] == 0
    assert result["violations"] == 0


def test_a_stream_that_ends_gives_fewer_rows():
    tasks = [TASK, Task("image", "clip-vit-b32"), TASK]
    table = play("oracle", task=iter(tasks))
    assert len(table) == 3
    assert table["oracle_energy_j"][0] == table["oracle_energy_j"][2] > table["oracle_energy_j"][1]


def test_a_limit_no_arm_can_meet_is_named_with_the_fastest_arm():
    fastest = "least, component=dla, power_w=60, load=1.0"
    with pytest.raises(
        ValueError, match=f"limit latency_s=0.01: no arm can meet it; the {fastest}"
    ):
        play(limits={"latency_s": 0.01})


def test_a_limit_no_arm_can_meet_may_be_played_against_the_fastest_arm():
    table = play("oracle", limits={"latency_s": 0.01}, allow_infeasible=True)
    assert table["infeasible"].all() and not table["certified"].any()
    assert (table["true_energy_j"] == table["oracle_energy_j"]).all()
    assert table["arm"].nunique() == 1


def test_a_device_that_breaks_leaves_the_tasks_done_before():
    with pytest.raises(RunStopped, match="stopped after 7 tasks: lost connection") as caught:
        play(device=Faulty())
    pd.testing.assert_frame_equal(caught.value.table, play(device=Faulty(), steps=7))


def test_a_stopped_run_survives_the_way_back_from_a_worker():
    with pytest.raises(RunStopped) as caught:
        play(device=Faulty())
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value) and len(back.table) == 7


def test_a_failed_measurement_is_kept_and_stops_nothing():
    table = play(device=Faulty(), steps=7)
    assert table["failed"].tolist() == ["", "", "out of memory", "", "", "", ""]
    assert table["energy_j"].isna().tolist() == [False, False, True, False, False, False, False]
    assert table["true_energy_j"].notna().all()


SCRIPT = """
import hashlib
from test_runner import play
tables = [play(name, steps=90, seed=5) for name in ("thompson", "epsilon-greedy", "safe-gp-ucb")]
text = "".join(table.round(6).to_csv() for table in tables)
print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_table_in_another_process():
    command, here = [sys.executable, "-c", SCRIPT], os.path.dirname(__file__)
    given = [{**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": here} for number in ("1", "2")]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for env in given]
    first, second = (process.communicate()[0] for process in started)
    assert first == second and len(first) == 65


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


def test_limits_that_only_clash_together_are_told_as_such():
    least = open_device("agx-orin-sim").expected_all(TASK).energy_j.min()
    together = {"latency_s": 0.06, "energy_j": 1.01 * least}
    with pytest.raises(ValueError, match="no arm can meet all of them"):
        play(limits=together)


def test_a_board_that_drifts_beyond_the_limit_leaves_the_tasks_done_before():
    slower = [Drift(name, 100.0, start=7) for name in ("gpu", "cpu", "dla")]
    with pytest.raises(RunStopped, match="stopped after 7 tasks: limit latency_s") as caught:
        play(device=open_device("agx-orin-sim", drift=slower))
    assert len(caught.value.table) == 7
