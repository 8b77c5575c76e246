import matplotlib.pyplot as plt
import pandas as pd
import pytest

from mllm_sched.devices import Outage, open_device
from mllm_sched.study import time_varying_plots
from mllm_sched.study.lineup import full_power_arms
from mllm_sched.study.runner import Rule
from mllm_sched.study.time_varying import (
    after_change,
    lineup,
    play,
    scenarios,
    summarise,
    tasks_until_safe,
)
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
RULES = [
    Rule("Oracle", "oracle"),
    Rule("Adaptive safe GP", "adaptive-safe-gp"),
    Rule("Fixed", "fixed"),
]


@pytest.fixture(scope="module")
def played():
    chosen = scenarios(100)
    trusted = full_power_arms(open_device("agx-orin-sim").space, ("dla",))
    return chosen, play(chosen, RULES, TASK, 100, 2, limit_s=0.1, trusted=trusted)


@pytest.mark.parametrize(
    ("beyond", "tasks"),
    [
        ([False] * 50, 0),
        ([True] * 3 + [False] * 50, 3),
        ([False] * 49 + [True] + [False] * 50, 50),
        ([True, False] * 40, 80),
        ([False] * 10, 10),
    ],
)
def test_safe_again_means_fifty_in_a_row(beyond, tasks):
    assert tasks_until_safe(pd.Series(beyond)) == tasks


def test_every_scenario_leaves_an_arm_within_the_limit_and_the_oracle_takes_it(played):
    chosen, table = played
    assert set(table["scenario"]) == {scenario.label for scenario in chosen}
    oracle = table[table["scheduler"] == "Oracle"]
    assert len(oracle) == 6 * 2 * 100 and not oracle["beyond"].any()


def test_an_outage_fails_every_run_on_its_component_and_counts_as_beyond(played):
    chosen, table = played
    fixed = table[(table["scheduler"] == "Fixed") & (table["scenario"] == "DLA fails")]
    out = fixed["step"].between(50, 79)
    assert (fixed.loc[out, "failed"] == "dla does not answer").all()
    assert (fixed.loc[~out, "failed"] == "").all()
    assert fixed.loc[out, "beyond"].all() and not fixed.loc[~out, "beyond"].any()
    runs = after_change(table, chosen)
    row = runs[(runs["scheduler"] == "Fixed") & (runs["scenario"] == "DLA fails")].iloc[0]
    assert row["failures"] == pytest.approx(30 / 50) and row["energy_over_oracle"] > 1.0
    assert row["tasks_until_safe"] == 50


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


def test_the_line_up_is_told_apart_by_colour_and_dashes():
    from mllm_sched.study.plots import dashes, scheduler_colour

    labels = [rule.label for rule in lineup({})]
    assert len({(scheduler_colour(label), dashes(label)) for label in labels}) == len(labels)


def test_figures_show_every_scenario_and_every_rule(played):
    chosen, table = played
    summary = summarise(after_change(table, chosen))
    assert len(summary) == 6 * 3 * 4 and (summary["n"] == 2).all()
    figure = time_varying_plots.over_time(
        table, chosen, "beyond", ylabel="share", title="Beyond", evidence="simulated"
    )
    assert [ax.get_title() for ax in figure.axes] == [scenario.label for scenario in chosen]
    ax = time_varying_plots.who_notices(summary, evidence="simulated")
    assert "simulated" in ax.get_title() and len(ax.texts) == 18
    plt.close("all")
