"""A scheduler followed task by task on the simulated board."""

import numpy as np
import pytest

from mllm_sched.devices import open_device
from mllm_sched.experiments.comparison import trusted_arms
from mllm_sched.experiments.exploration import explore
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.schedulers import scheduler_names
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LIMIT_S = 0.2


def followed(name="safe-gp-ucb", steps=70):
    return explore(open_device("agx-orin-sim"), TASK, LIMIT_S, Rule(name, name), steps, seed=3)


@pytest.mark.parametrize("name", scheduler_names())
def test_following_a_scheduler_does_not_change_its_run(name):
    device = open_device("agx-orin-sim")
    seeds = trusted_arms(device)
    alone = run(
        Rule(name, name), device, TASK, 40, limits={"latency_s": LIMIT_S}, seed=3, seeds=seeds
    )
    seen = followed(name, steps=40)
    assert seen.tasks[alone.columns].equals(alone)
    assert all(values.shape == (40, 60) for values in seen.beliefs.values())


def test_the_state_after_n_tasks_holds_the_tasks_so_far():
    seen = followed()
    for n in (1, 20, 70):
        state = seen.after(n)
        arms = seen.tasks["arm"].iloc[:n]
        assert state["plays"].tolist() == np.bincount(arms, minlength=60).tolist()
        assert state.index[state["chosen"]].tolist() == [arms.iloc[-1]]
    certified = [seen.summary(n)["certified"] for n in (1, 20, 70)]
    assert certified == sorted(certified) and certified[-1] > certified[0]


def test_the_oracle_spends_what_it_must_and_ucb_more():
    oracle, ucb = followed("oracle").summary(70), followed("ucb").summary(70)
    assert oracle["over the oracle"] == pytest.approx(0.0) and oracle["beyond the limit"] == 0
    assert ucb["over the oracle"] > 1.0 and ucb["tried"] == 60 and ucb["certified"] == 0
    assert ucb["beyond the limit"] >= (~followed("ucb").board["within"]).sum()


@pytest.mark.parametrize("n", [0, -1, 71])
def test_a_task_that_was_not_played_is_refused(n):
    with pytest.raises(ValueError, match=f"n={n}: expected a task from 1 to 70"):
        followed().after(n)
