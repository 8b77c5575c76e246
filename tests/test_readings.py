"""Other readings of the paper: each gives the numbers that its claims ask for."""

from dataclasses import replace

import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.arms import ArmSpace
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import arm_landscape, readings, strategy_costs
from mllm_sched.experiments.claims import load_claims
from mllm_sched.experiments.notebook_files import defaults
from mllm_sched.experiments.readings import AS_IS, ENCODER, OTHER, experiments, numbers
from mllm_sched.tasks import Task

EXPERIMENTS = experiments(steps=40, seeds=2)
ALL = [(experiment, label) for experiment in EXPERIMENTS for label in experiment.readings]
JUDGED = [claim for claim in load_claims() if claim.tests]
PLANS = {"feedback", "many-users"}  # of the paper, which says nothing that could be read otherwise
SEEDED = {*readings.SCHEDULING, "power-levels", "latency-limits", "time-varying", "savings-year"}


def test_every_judged_claim_has_readings_but_for_measured_facts_and_plans():
    read = {name for experiment in EXPERIMENTS for name in experiment.claims}
    measured = {claim.id for claim in JUDGED if claim.evidence == "measured"}
    assert read == {claim.id for claim in JUDGED} - measured - PLANS


def test_every_reading_differs_from_its_experiment_as_it_is_and_from_the_others():
    for experiment in EXPERIMENTS:
        first, *others = experiment.readings
        assert first == AS_IS and len(others) > 2
        changes = list(map(repr, experiment.readings.values()))
        assert len(set(changes)) == len(changes)


def test_whatever_depends_on_seeds_is_read_with_other_seeds():
    own = {name for one in EXPERIMENTS if OTHER in one.readings for name in one.claims}
    assert own == SEEDED


def test_the_limits_are_some_of_the_notebook():
    own = defaults(paths.NOTEBOOKS / "06_latency_limits.ipynb")["limits_s"]
    assert set(readings.LIMITS_S) <= set(own)


QUICK = [(experiment, label) for experiment, label in ALL if label != OTHER]


def some_of(chosen):
    """Some readings of every claim; all but the first are slow, and so is what takes seconds."""
    seen = {"time-varying", "savings-year"}
    for experiment, label in chosen:
        first = experiment.claims[0]
        marks = [pytest.mark.slow] if first in seen else []
        seen.add(first)
        yield pytest.param(experiment, label, marks=marks, id=f"{first}: {label}")


@pytest.mark.parametrize(("experiment", "label"), list(some_of(QUICK[::3])))
def test_a_reading_has_every_number_that_its_claims_ask_for(experiment, label):
    keys = numbers(experiment, label).index
    assert keys.is_unique
    for claim in JUDGED:
        if claim.id in experiment.claims:
            assert {test.key for test in claim.tests} <= set(keys)


def test_int8_on_the_wire_stands_in_for_the_claims_own_type():
    before, after = (
        numbers(EXPERIMENTS[-1], label)["value"] for label in (AS_IS, "int8 on the wire")
    )
    assert after["float16 against raw"] == before["int8 against raw"]
    assert after["transmission, float16"] == before["transmission, int8"]
    changed = after[after != before].index
    assert set(changed) == {"float16 against raw", "transmission, float16"}


def test_a_reading_of_one_item_keeps_to_it_in_every_form():
    chosen = dict(strategy_costs.variants(strategy_costs.Setting()))
    sound = dict(strategy_costs.variants(chosen["the sound alone"]))
    assert [item.encoder for item in sound["input compressed"].items] == ["whisper-small"]
    assert [item.encoder for item in sound["the image alone"].items] == ["clip-vit-l14-336"]
    three = strategy_costs.claim_numbers(chosen["three edges"]).set_index("key")["value"]
    assert three["encoding, one edge"] == 1 > three["encoding, three edges"]


def rules_of(label):
    return readings._rules(SimulatedOrin(), Task("image", ENCODER), **label)


def test_a_reading_changes_who_stands_as_a_baseline():
    ours, ucb, greedy = rules_of({})
    assert (ours.label, ucb.name, greedy.settings) == ("Safe GP-UCB", "ucb", {"epsilon": 0.1})
    penalised = rules_of({"baselines": {"penalty": 1.0}})
    assert [rule.settings.get("penalty") for rule in penalised] == [None, 1.0, 1.0]
    gp = rules_of({"ucb": readings.GP_UCB})[1]
    assert gp.name == "safe-gp-ucb" and gp.settings["limits"]["latency_s"] > 1e5
    assert gp.settings["hyperparameters"] == ours.settings["hyperparameters"]
    assert rules_of({"fitted": False})[0].settings == {}


def test_others_work_costs_energy_where_others_have_a_share():
    task = Task("image", ENCODER)
    arm = ArmSpace.agx_orin().arm(component="gpu", power_w=15, load=1.0)
    busy = replace(task, background_load=0.2)
    mine, all_of_it = SimulatedOrin(), SimulatedOrin(accounting="tenants")
    assert all_of_it.expected(arm, task).energy_j == mine.expected(arm, task).energy_j
    assert all_of_it.expected(arm, busy).energy_j > mine.expected(arm, busy).energy_j


def test_curves_that_only_rise_are_not_counted_as_turning():
    table = pd.DataFrame({"component": ["gpu"] * 6, "load": [1.0] * 3 + [0.2] * 3})
    table = table.assign(power_w=[15, 30, 60] * 2, energy_j=[1, 2, 3, 3, 1, 2])
    assert arm_landscape.non_monotone(table, "power_w", "energy_j") == 1
