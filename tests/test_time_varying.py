import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mllm_sched.devices import Outage, Throttling, open_device
from mllm_sched.experiments import time_varying
from mllm_sched.experiments.lineup import full_power_arms
from mllm_sched.experiments.plots import dashes, scheduler_colour
from mllm_sched.experiments.runner import Rule, run
from mllm_sched.experiments.time_varying import (
    Aftermath,
    aftermath,
    effects,
    lineup,
    play,
    scenarios,
    tasks_until_safe,
)
from mllm_sched.schedulers import make_scheduler
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LIMITS = {"latency_s": 0.1}
RULES = [
    Rule("Oracle", "oracle"),
    Rule("Adaptive safe GP", "adaptive-safe-gp"),
    Rule("Fixed", "fixed"),
]
STEPS, HALF, BACK = 200, 100, 160


@pytest.fixture(scope="module")
def played():
    chosen = scenarios(STEPS)
    trusted = full_power_arms(open_device("agx-orin-sim").space, ("dla",))
    options = {"limit_s": 0.1, "trusted": trusted, "n_jobs": 1}
    return chosen, play(chosen, RULES, TASK, STEPS, 2, **options)


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
        ([False] * 10, (0, False)),
        ([True] * 3, (3, True)),
    ],
)
def test_safe_again_means_twenty_in_a_row_from_the_first_beyond(beyond, tasks):
    assert tasks_until_safe(pd.Series(beyond)) == tasks


def test_every_scenario_leaves_an_arm_within_the_limit_and_the_oracle_takes_it(played):
    chosen, table = played
    assert list(table["scenario"].cat.categories) == [scenario.label for scenario in chosen]
    oracle = table[table["scheduler"] == "Oracle"]
    assert len(oracle) == len(chosen) * 2 * STEPS and not oracle["beyond"].any()


def test_the_hottest_arm_leaves_an_arm_within_the_limit():
    hot = next(s for s in scenarios(800) if s.label == "heat")
    board = open_device("agx-orin-sim", **hot.board)
    means, heat = board.expected_all(TASK), hot.board["throttling"]
    hottest = float((means.energy_j / means.latency_s).max())
    board.step, board.temperature_c = 799, heat.warmed(25.0, hottest, np.inf)
    assert (board.expected_all(TASK).latency_s <= 0.1).any()


def test_the_half_that_scenarios_share_is_what_each_would_have_played_alone(played):
    chosen, table = played
    trusted = full_power_arms(open_device("agx-orin-sim").space, ("dla",))
    for scenario in chosen:
        for rule in RULES:
            board = open_device("agx-orin-sim", np.random.SeedSequence([1, 0]), **scenario.board)
            alone = run(rule, board, TASK, STEPS, limits=LIMITS, seeds=trusted, seed=1)
            shared = of(table, rule.label, scenario.label)
            shared = shared[shared["seed"] == 1].reset_index(drop=True)
            columns = ["step", "arm", "energy_j", "latency_s", "true_latency_s", "oracle_energy_j"]
            pd.testing.assert_frame_equal(shared[columns], alone[columns])


def test_effects_say_what_a_change_does_at_either_limit():
    chosen = scenarios(800)
    tight, loose = effects(chosen, TASK, 0.1), effects(chosen, TASK, 0.2)
    changed = tight.drop(index="nothing changes")
    assert (changed["during, s"] > 0.1).all()
    assert (changed["best arm during"] != changed["best arm before"]).all()
    assert (changed["during"] >= 1).all()
    still = tight.loc["nothing changes"]
    assert still["during, s"] == still["its latency before, s"]
    assert (loose["during, s"] <= 0.2).tolist() == [True] * 5 + [False] * 2
    slower = tight.loc[["DLA 35 % slower", "the same, slowly"], "during, s"]
    assert slower.to_numpy() == pytest.approx(1.35 * still["during, s"])


def test_marks_are_within_the_run():
    marks = {scenario.label: scenario.marks(800) for scenario in scenarios(800)}
    assert marks["DLA 35 % slower"] == [400] and marks["the same, slowly"] == [400, 600]
    assert marks["DLA fails"] == [400, 640]


def test_an_outage_fails_every_run_on_its_component_and_counts_as_beyond(played):
    chosen, table = played
    fixed = of(table, "Fixed", "DLA fails")
    out = fixed["step"].between(HALF, BACK - 1)
    assert (fixed.loc[out, "failed"] == "dla does not answer").all()
    assert (fixed.loc[~out, "failed"] == "").all()
    assert fixed.loc[out, "beyond"].all() and not fixed.loc[~out, "beyond"].any()
    row = of(aftermath(table, chosen).runs, "Fixed", "DLA fails").iloc[0]
    assert row["failures"] == row["violations"] == pytest.approx(0.6)
    assert row["tasks_until_safe"] == 60 and not row["never_safe"]
    done = fixed[(fixed["step"] >= BACK) & (fixed["seed"] == 0)]
    wanted = done["true_energy_j"].sum() / done["oracle_energy_j"].sum()
    assert row["energy_over_oracle"] == row["energy_afterwards"] == pytest.approx(wanted)


def test_an_announced_outage_fails_nobody_and_keeps_what_was_known(played):
    _, table = played
    announced = table[table["scenario"] == "DLA out, announced"]
    assert (announced["failed"] == "").all()
    space = open_device("agx-orin-sim").space
    component = announced["arm"].map(lambda arm: space[arm].component)
    out = announced["step"].between(HALF, BACK - 1)
    assert not (component[out] == "dla").any()
    adaptive = announced["scheduler"] == "Adaptive safe GP"
    assert (component[adaptive & (announced["step"] >= BACK)] == "dla").all()


def test_a_board_says_which_arms_are_available():
    outages = [Outage("dla", 1, 2, announced=True), Outage("gpu", 1, 2)]
    board = open_device("agx-orin-sim", outages=outages)
    assert board.available() is None
    board.step = 1
    assert {arm.component for arm in board.available()} == {"gpu", "cpu"}
    board.step = 2
    assert board.available() is None


def test_the_runner_passes_on_what_is_available():
    board = open_device("agx-orin-sim", outages=[Outage("dla", 3, 6, announced=True)])
    trusted = full_power_arms(board.space, ("dla",))
    table = run(RULES[2], board, TASK, 8, limits=LIMITS, seeds=trusted)
    gone = [board.space[arm].component != "dla" for arm in table["arm"]]
    assert gone == [3 <= step < 6 for step in range(8)] and (table["failed"] == "").all()


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


def test_heat_begins_at_its_task():
    board = open_device("agx-orin-sim", throttling=Throttling(ambient_c=60.0, start=3))
    arm = board.space.arm(component="gpu", power_w=60, load=1.0)
    temperatures = []
    for _ in range(5):
        board.run(arm, TASK)
        temperatures.append(board.temperature_c)
    assert temperatures[:3] == [60.0] * 3 and 60.0 < temperatures[3] < temperatures[4]
    with pytest.raises(ValueError, match="start=-1"):
        Throttling(start=-1)


def test_the_line_up_can_be_made_and_told_apart_by_colour_and_dashes():
    board, rules = open_device("agx-orin-sim"), lineup({})
    trusted = full_power_arms(board.space)
    for rule in rules[1:]:
        settings = {**rule.settings, "seeds": trusted, "limits": LIMITS}
        assert make_scheduler(rule.name, board.space, **settings).ask().arm in board.space
    looks = {(scheduler_colour(rule.label), dashes(rule.label)) for rule in rules}
    assert len(looks) == len(rules)
    colours = {scheduler_colour(rule.label) for rule in rules}
    assert len(colours) == len(rules) - 1  # the rule that forgets has the colour of its rule


def runs_of(*rows):
    columns = ["scheduler", "violations", "energy_over_oracle"]
    frame = pd.DataFrame([row for row in rows for _ in range(2)], columns=columns)
    frame["scheduler"] = pd.Categorical(frame["scheduler"], [row[0] for row in rows])
    scenario = pd.Categorical(["x"] * len(frame))
    return frame.assign(scenario=scenario, seed=[0, 1] * len(rows))


def test_the_best_are_careful_first_and_equals_stand_together():
    rows = ("Oracle", 0.0, 1.0), ("a", 0.0, 1.3), ("b", 0.0, 1.2), ("c", 0.5, 0.9)
    best = Aftermath(runs_of(*rows)).best()
    assert best.loc["x"].tolist() == ["a; b", "b"]
    nobody = Aftermath(runs_of(("a", 0.2, 1.0), ("b", 0.3, 0.9))).best()
    assert nobody.loc["x"].tolist() == ["a", "none"]


def test_the_summary_has_means_with_intervals_and_no_afterwards_without_an_end(played):
    chosen, table = played
    after = aftermath(table, chosen)
    summary, runs = after.summary, after.runs
    assert (summary["n"] == 2).all()
    assert ((summary["low"] <= summary["value"]) & (summary["value"] <= summary["high"])).all()
    ended = set(summary.loc[summary["quantity"] == "energy_afterwards", "scenario"])
    assert ended == {scenario.label for scenario in chosen if scenario.stop < STEPS}
    mean = of(runs, "Adaptive safe GP", "heat")["energy_over_oracle"].mean()
    wide = after.wide("energy_over_oracle")
    assert wide.loc["Adaptive safe GP", "heat"] == pytest.approx(mean)
    text = after.with_intervals("violations", scale=100)
    assert list(text.columns) == [scenario.label for scenario in chosen]
    assert text.loc["Fixed", "DLA fails"] == "60.0 [60.0, 60.0]" and "Oracle" not in text.index


def test_figures_show_every_scenario_and_every_rule(played):
    chosen, table = played
    for quantity in ("beyond", "true_energy_j"):
        figure = time_varying.over_time(
            table, chosen, quantity, ylabel="share", title="Beyond", evidence="simulated"
        )
        drawn = [ax for ax in figure.axes if ax.axison]
        assert [ax.get_title() for ax in drawn] == [scenario.label for scenario in chosen]
        assert figure.get_suptitle() == "Beyond (simulated)" and figure.axes[0].get_ylabel()
        (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        assert [t.get_text() for t in legend.get_texts()] == [rule.label for rule in RULES]
    figure = time_varying.who_notices(aftermath(table, chosen), evidence="simulated")
    assert all(ax.get_title().endswith("(simulated)") for ax in figure.axes)
    assert [len(ax.texts) for ax in figure.axes] == [14, 14]
    plt.close("all")
