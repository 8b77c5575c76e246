"""Other readings of the paper: what each changes, and that every verdict can come of it."""

from dataclasses import replace

import pandas as pd
import papermill
import pytest
import yaml

from mllm_sched import paths
from mllm_sched.arms import ArmSpace
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import arm_landscape, metrics, readings, stability, strategy_costs
from mllm_sched.experiments.claims import load_claims
from mllm_sched.experiments.readings import PaperReading, all_readings
from mllm_sched.experiments.strategy_costs import Setting

GROUPS = all_readings(steps=40, seeds=2)
READINGS = [reading for group in GROUPS for reading in group]
JUDGED = [claim for claim in load_claims() if claim.tests]
PLANS = {"feedback", "many-users"}  # of the paper, which says nothing that could be read otherwise


def test_every_judged_claim_has_readings_but_for_measured_facts_and_plans():
    read = {name for reading in READINGS for name in reading.claims}
    measured = {claim.id for claim in JUDGED if claim.evidence == "measured"}
    assert read == {claim.id for claim in JUDGED} - measured - PLANS


def test_a_group_begins_with_its_experiment_as_it_is_and_names_each_reading_once():
    for group in GROUPS:
        labels = [reading.label for reading in group]
        assert labels[0] == readings.AS_IS and len(set(labels)) == len(labels) > 2
        assert len({reading.claims for reading in group}) == 1


def test_whatever_hangs_on_seeds_is_read_with_other_seeds():
    own = {
        name for reading in READINGS if reading.label == "other seeds" for name in reading.claims
    }
    wanted = {
        *readings.SCHEDULING,
        "power-levels",
        "latency-limits",
        "time-varying",
        "savings-year",
    }
    assert own == wanted


def test_the_limits_are_those_of_the_notebook():
    defaults = papermill.inspect_notebook(str(paths.NOTEBOOKS / "06_latency_limits.ipynb"))
    assert tuple(yaml.safe_load(defaults["limits_s"]["default"])) == stability.LIMITS_S
    assert set(readings.LIMITS_S) <= set(stability.LIMITS_S)


QUICK = [reading for reading in READINGS if reading.label != readings.OTHER]


def some_of(chosen):
    """Some readings of every claim; all but the first are slow, and so is what takes seconds."""
    seen = {"time-varying", "savings-year"}
    for reading in chosen:
        first = reading.claims[0]
        marks = [pytest.mark.slow] if first in seen else []
        seen.add(first)
        yield pytest.param(reading, marks=marks, id=f"{first}: {reading.label}")


@pytest.mark.parametrize("reading", list(some_of(QUICK[:: max(1, len(QUICK) // 24)])))
def test_a_reading_has_every_number_that_its_claims_ask_for(reading):
    keys = set(reading.numbers()["key"])
    for claim in JUDGED:
        if claim.id in reading.claims:
            assert {test.key for test in claim.tests} <= keys


def test_int8_on_the_wire_stands_in_for_the_claims_own_type():
    before = strategy_costs.claim_numbers().set_index("key")["value"]
    after = readings.decoupling()[-1].numbers().set_index("key")["value"]
    assert after["float16 against raw"] == before["int8 against raw"]
    assert after["transmission, float16"] == before["transmission, int8"]
    changed = after[after != before].index
    assert set(changed) == {"float16 against raw", "transmission, float16"}


def test_a_reading_of_one_item_keeps_to_it_in_every_form():
    chosen = dict(strategy_costs.variants(Setting()))
    sound = dict(strategy_costs.variants(chosen["the sound alone"]))
    assert [item.encoder for item in sound["input compressed"].items] == ["whisper-small"]
    assert [item.encoder for item in sound["the image alone"].items] == ["clip-vit-l14-336"]
    three = strategy_costs.claim_numbers(chosen["three edges"]).set_index("key")["value"]
    assert three["encoding, one edge"] == 1 > three["encoding, three edges"]


def test_limits_are_scaled_to_the_encoder():
    slowness = readings._slowness(readings.Variant("", encoder="clip-vit-b32"))
    assert slowness == pytest.approx(0.2, abs=0.05)
    assert readings._slowness(readings.Variant("")) == 1


def numbers(value):
    row = {"key": "DLA over GPU, mean", "value": value, "n": 1, "evidence": "simulated"}
    rows = [row, {**row, "key": "DLA over GPU, least"}]
    return pd.DataFrame(rows).assign(low=float("nan"), high=float("nan"))


def better():
    return numbers(2.0)


def worse():
    return numbers(0.5)


def test_verdicts_follow_the_numbers_of_each_reading_that_moves_them():
    claims = ("dla-per-watt",)
    group = [PaperReading(label, claims, f) for label, f in MADE.items()]
    judged, behind = readings.under([group], n_jobs=1)
    assert judged["reading"].tolist() == ["worse"]  # the same again cannot change a verdict
    assert judged["verdict"].tolist() == ["not reproduced"]
    assert behind["value"].tolist() == [2.0, 2.0, 2.0, 2.0, 0.5, 0.5]
    counts = readings.shares(judged, pd.Series({"dla-per-watt": "reproduced"}))
    assert counts.loc["dla-per-watt"].tolist() == ["reproduced", 0, 0, 1]
    ax = readings.verdict_bars(counts, evidence="simulated")
    assert "(simulated)" in ax.get_title()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dla-per-watt"]


MADE = {"as it is": better, "better still": better, "worse": worse}


def test_trusted_arms_meet_the_limit_if_any_full_power_arm_does():
    task = readings.Variant("").task()
    for limit, trusted in ((0.2, 2), (0.06, 1), (0.05, 2)):
        (case,) = stability.limit_cases([limit])
        assert len(case.trusted(task)) == trusted


def test_a_power_level_is_a_board_of_its_own():
    cases = stability.power_cases(0.2)
    assert [case.label for case in cases] == ["15W", "30W", "50W", "MAX", "any level"]
    assert [len(case.open().space) for case in cases] == [15, 15, 15, 15, 60]
    with pytest.raises(ValueError, match="power_levels: 20: expected some of 15, 30, 50, 60"):
        stability.Case("20W", 0.2, (20,)).open()


def test_stability_counts_only_limits_that_some_arm_meets():
    cases = stability.limit_cases([0.05, 0.06, 0.2])
    played = stability.play(cases, readings.Variant("").task(), 30, 2, n_jobs=1)
    assert played.feasible == {"0.05 s": 0, "0.06 s": 1, "0.2 s": 22}
    found = played.numbers().set_index("key")["value"]
    energy = played.wide("energy_over_oracle").loc["Safe GP-UCB", ["0.06 s", "0.2 s"]]
    assert found["energy over oracle, worst"] == pytest.approx(energy.max())
    assert found["energy over oracle, best"] == pytest.approx(energy.min())
    assert played.wide("violations").loc["Safe GP-UCB", "0.05 s"] == 1
    assert found["violations, worst"] < 0.1
    said = played.ends.set_index(["case", "scheduler"])["infeasible"]
    assert (said["0.05 s", "Oracle"] == 1).all() and (said["0.2 s", "Oracle"] == 0).all()


def test_stability_without_any_limit_that_an_arm_meets_is_refused_by_name():
    played = stability.play(stability.limit_cases([0.05]), readings.MAIN.task(), 20, 2, n_jobs=1)
    with pytest.raises(ValueError, match=r"limits of 0\.05 s: no arm meets any of them"):
        played.numbers()


def test_what_is_said_of_the_worst_case_reaches_to_the_worst_bound_of_any():
    rows = pd.DataFrame({"value": [0.45, 0.40], "low": [0.45, 0.0], "high": [0.45, 1.2], "n": 20})
    assert metrics.highest(rows) == (0.45, 0.45, 1.2, 20)
    assert metrics.lowest(rows) == (0.40, 0.0, 1.2, 20)


def test_others_work_costs_energy_where_others_have_a_share():
    task, arm = readings.MAIN.task(), ArmSpace.agx_orin().arm(component="gpu", power_w=15, load=1.0)
    busy = replace(task, background_load=0.2)
    mine, all_of_it = SimulatedOrin(), SimulatedOrin(accounting="tenants")
    assert all_of_it.expected(arm, task).energy_j == mine.expected(arm, task).energy_j
    assert all_of_it.expected(arm, busy).energy_j > mine.expected(arm, busy).energy_j


def test_curves_that_only_rise_are_not_counted_as_turning():
    table = pd.DataFrame({"component": ["gpu"] * 6, "load": [1.0] * 3 + [0.2] * 3})
    table = table.assign(power_w=[15, 30, 60] * 2, energy_j=[1, 2, 3, 3, 1, 2])
    assert arm_landscape.non_monotone(table, "power_w", "energy_j") == 1
