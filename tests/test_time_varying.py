import numpy as np
import pandas as pd
import pytest

from mllm_sched.devices import Outage, open_device
from mllm_sched.experiments.comparison import full_power_arms
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.experiments.time_varying import (
    ChangeScenario,
    aftermath,
    changes,
    play,
    tasks_until_safe,
)
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LIMITS = {"latency_s": 0.1}
RULES = [
    Rule("Oracle", "oracle"),
    Rule("Adaptive safe GP", "adaptive-safe-gp"),
    Rule("Fixed", "fixed"),
]
STEPS, HALF, BACK = 200, 100, 160
FAILS, ANNOUNCED = (
    ChangeScenario(label, {"outages": [Outage("dla", HALF, BACK, announced=announced)]}, HALF, BACK)
    for label, announced in (("DLA fails", False), ("DLA out, announced", True))
)
SCENARIOS = [*changes(STEPS), FAILS, ANNOUNCED]


@pytest.fixture(scope="module")
def trusted():
    return full_power_arms(open_device("agx-orin-sim").space, ("dla",))


@pytest.fixture(scope="module")
def played(trusted):
    return play(SCENARIOS, RULES, TASK, STEPS, [0, 1], limit_s=0.1, trusted=trusted, n_jobs=1)


def of(table, scheduler, scenario):
    return table[(table["scheduler"] == scheduler) & (table["scenario"] == scenario)]


@pytest.mark.parametrize(
    ("beyond", "tasks"),
    [
        ([False] * 50, (0, False)),
        ([False] * 7 + [True] * 3 + [False] * 20, (3, False)),
        ([True] + [False] * 19 + [True] + [False] * 20, (21, False)),
        ([False] * 30 + [True] * 5 + [False] * 19, (24, True)),
        ([True, False] * 40, (80, True)),
        ([True] * 3, (3, True)),
    ],
)
def test_safe_again_means_twenty_in_a_row_from_the_first_beyond(beyond, tasks):
    assert tasks_until_safe(pd.Series(beyond)) == tasks


def test_every_scenario_leaves_an_arm_within_the_limit_and_the_oracle_takes_it(played):
    assert list(played["scenario"].cat.categories) == [scenario.label for scenario in SCENARIOS]
    oracle = played[played["scheduler"] == "Oracle"]
    assert len(oracle) == len(SCENARIOS) * 2 * STEPS and not oracle["beyond"].any()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_the_half_that_scenarios_share_is_what_each_would_have_played_alone(played, trusted, rule):
    columns = ["step", "arm", "energy_j", "latency_s", "true_latency_s", "oracle_energy_j"]
    for scenario in SCENARIOS:
        board = open_device("agx-orin-sim", np.random.SeedSequence([1, 0]), **scenario.board)
        alone = run(rule, board, TASK, STEPS, limits=LIMITS, seeds=trusted, seed=1)
        shared = of(played[played["seed"] == 1], rule.label, scenario.label)
        pd.testing.assert_frame_equal(shared[columns].reset_index(drop=True), alone[columns])


def test_an_outage_fails_every_run_on_its_component_and_counts_as_beyond(played):
    fixed = of(played, "Fixed", "DLA fails")
    out = fixed["step"].between(HALF, BACK - 1)
    assert (fixed.loc[out, "failed"] == "dla does not answer").all()
    assert (fixed.loc[~out, "failed"] == "").all()
    assert fixed.loc[out, "beyond"].all() and not fixed.loc[~out, "beyond"].any()
    row = of(aftermath(played, SCENARIOS), "Fixed", "DLA fails").iloc[0]
    assert row["failures"] == row["violations"] == pytest.approx(0.6)
    assert row["tasks_until_safe"] == 60 and not row["never_safe"]
    done = fixed[(fixed["step"] >= BACK) & (fixed["seed"] == 0)]
    wanted = done["true_energy_j"].sum() / done["oracle_energy_j"].sum()
    assert row["energy_over_oracle"] == row["energy_afterwards"] == pytest.approx(wanted)


def test_an_announced_outage_fails_nobody_and_keeps_what_was_known(played):
    announced = played[played["scenario"] == "DLA out, announced"]
    assert (announced["failed"] == "").all()
    space = open_device("agx-orin-sim").space
    component = announced["arm"].map(lambda arm: space[arm].component)
    out = announced["step"].between(HALF, BACK - 1)
    assert not (component[out] == "dla").any()
    adaptive = announced["scheduler"] == "Adaptive safe GP"
    assert (component[adaptive & (announced["step"] >= BACK)] == "dla").all()


def test_an_outage_is_checked_and_its_truth_is_said():
    with pytest.raises(ValueError, match="start=5, stop=4"):
        Outage("dla", 5, 4)
    with pytest.raises(ValueError, match="outages: 'tpu'"):
        open_device("agx-orin-sim", outages=[Outage("tpu", 0, 1)])
    board = open_device("agx-orin-sim", outages=[Outage("dla", 0, 1)])
    arm = board.space.arm(component="dla", power_w=60, load=1.0)
    assert board.expected(arm, TASK).failed == "dla does not answer"
    assert board.run(arm, TASK).failed and not board.run(arm, TASK).failed
    assert board.expected(arm, TASK).latency_s < 1.0
