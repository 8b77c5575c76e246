"""Other readings of the paper: what each changes, and that every verdict can come of it."""

import pandas as pd
import pytest

from mllm_sched.study import readings, stability, verdicts
from mllm_sched.study.claim_file import load_claims
from mllm_sched.study.readings import Reading, all_readings

SMALL = all_readings(steps=40, seeds=2)
JUDGED = [claim for claim in load_claims() if claim.tests]


def test_every_judged_claim_has_readings_but_for_what_is_a_measured_fact():
    read = {name for reading in SMALL for name in reading.claims}
    measured = {claim.id for claim in JUDGED if claim.evidence == "measured"}
    assert read == {claim.id for claim in JUDGED} - measured


def test_a_claim_meets_every_reading_once():
    pairs = [(name, reading.label) for reading in SMALL for name in reading.claims]
    assert len(set(pairs)) == len(pairs)


def test_whatever_hangs_on_seeds_is_read_with_other_seeds():
    own = {name for reading in SMALL if reading.label == "other seeds" for name in reading.claims}
    assert {"energy-ucb", "safety", "power-levels", "latency-limits", "time-varying"} <= own


@pytest.mark.parametrize("label", ["other seeds", "three edges", "clip-vit-b32 alone"])
def test_a_reading_has_every_number_that_its_claims_ask_for(label):
    for reading in SMALL:
        if reading.label == label:
            keys = set(reading.numbers()["key"])
            for claim in JUDGED:
                if claim.id in reading.claims:
                    assert {test.key for test in claim.tests} <= keys


def test_int8_on_the_wire_stands_in_for_the_claims_own_type():
    before = readings.decoupling()[0].numbers().set_index("key")["value"]
    after = readings.decoupling()[-1].numbers().set_index("key")["value"]
    assert after["float16 against raw"] == after["int8 against raw"]
    assert after["transmission, float16"] < before["transmission, float16"]


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


def test_verdicts_follow_the_numbers_of_each_reading():
    chosen = [Reading(f.__name__, ("dla-per-watt",), f) for f in (better, worse)]
    judged, behind = verdicts.under(chosen, n_jobs=1)
    assert judged["verdict"].tolist() == ["reproduced", "not reproduced"]
    assert behind["value"].tolist() == [2.0, 2.0, 0.5, 0.5]
    counts = verdicts.shares(judged, pd.Series({"dla-per-watt": "reproduced"}))
    assert counts.loc["dla-per-watt"].tolist() == ["reproduced", 1, 0, 1]
    ax = verdicts.verdict_bars(counts, evidence="simulated")
    assert "(simulated)" in ax.get_title()
    assert [text.get_text() for text in ax.get_yticklabels()] == ["dla-per-watt"]


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
