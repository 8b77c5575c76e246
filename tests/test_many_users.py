from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge.placement import Candidate, NoAgentFits, Prediction, place
from mllm_sched.experiments.fleet import Board, Fleet
from mllm_sched.experiments.many_users import (
    ANSWERED,
    NOBODY,
    SHED,
    UNDER_WAY,
    FleetScenario,
    Forecast,
    System,
    capacity_hz,
    counted,
    jain_index,
    max_min_share,
    measures,
    placed,
    play,
    soonest,
)
from mllm_sched.experiments.runner import Rule

FIXED = Rule("Fixed at full power", "fixed")
ALIKE = Fleet(scatter=0.0, warm_share=0.0)
CROWD = FleetScenario(users=400, edges=2, llm_servers=4, warm_up_s=10.0, horizon_s=20.0)


def measured(scenario):
    return measures(scenario, play(scenario))


@pytest.fixture(scope="module")
def system():
    system = System(CROWD)
    system.tasks = system.run()
    return system


def test_every_task_is_answered_shed_late_or_under_way_and_none_twice(system):
    crowd = system.tasks
    counts = crowd["outcome"].value_counts()
    assert set(counts.index) <= {ANSWERED, "late", *SHED, UNDER_WAY}
    assert counts.sum() == len(system.requests)
    assert counts[UNDER_WAY] == system.under_way == crowd["ended_s"].isna().sum()


def test_an_answer_is_in_time_and_was_encoded_and_a_shed_task_was_not(system):
    crowd = system.tasks
    answered = crowd[crowd["outcome"] == ANSWERED]
    assert len(answered) > 100
    assert (answered["ended_s"] <= answered["deadline_s"] + 1e-9).all()
    assert answered[["encode_s", "energy_j", "llm_s"]].notna().all(axis=None)
    assert (answered["begun_s"] >= answered["arrived_s"]).all()
    assert crowd.loc[crowd["outcome"].isin(SHED), "encode_s"].isna().all()


def test_a_board_encodes_one_task_at_a_time(system):
    for _, tasks in system.tasks.dropna(subset="encode_s").groupby("board"):
        tasks = tasks.sort_values("begun_s")
        ends = (tasks["begun_s"] + tasks["encode_s"]).to_numpy()
        assert (tasks["begun_s"].to_numpy()[1:] >= ends[:-1] - 1e-9).all()


def test_the_llm_servers_hold_no_more_answers_than_they_have_places():
    scenario = replace(CROWD, llm_servers=1, horizon_s=30.0)
    row = measured(scenario)
    assert 0.9 < row["llm_busy"] < 1.05  # service that began before the window ends within it
    assert row["answered_hz"] < 1.1 * capacity_hz(scenario)["LLM servers"]


def test_the_same_scenario_has_the_same_outcome_and_another_seed_another():
    short = replace(CROWD, users=100, horizon_s=10.0)
    first = play(short)
    pd.testing.assert_frame_equal(first, play(short), check_exact=True)
    assert not first.equals(play(replace(short, seed=1)))


def test_waiting_before_an_encoder_agrees_with_pollaczek_and_khinchine():
    scenario = FleetScenario(
        users=1500,
        edges=1,
        llm_servers=500,
        rule=FIXED,
        think_s=130.0,  # many users who ask rarely arrive nearly as a Poisson stream
        deadlines_s=(1e6, 1e6),
        fleet=ALIKE,
        waiting=10**6,
        warm_up_s=20.0,
        horizon_s=240.0,
    )
    tasks = counted(scenario, play(scenario)).dropna(subset="encode_s")
    service_s, waited_s = tasks["encode_s"], tasks["begun_s"] - tasks["arrived_s"]
    rate_hz = len(tasks) / scenario.horizon_s
    load = rate_hz * service_s.mean()
    assert 0.55 < load < 0.85
    expected_s = rate_hz * (service_s**2).mean() / (2 * (1 - load))
    assert waited_s.mean() == pytest.approx(expected_s, rel=0.2)


def test_tasks_in_the_system_are_their_rate_times_their_time_as_little_says():
    scenario = FleetScenario(users=300, edges=1, rule=FIXED, warm_up_s=20.0, horizon_s=100.0)
    system, seen = System(scenario), []

    def look():
        yield system.env.timeout(scenario.warm_up_s)
        while True:
            seen.append(system.under_way)
            yield system.env.timeout(0.05)

    system.env.process(look())
    tasks = counted(scenario, system.run())
    rate_hz = len(tasks) / scenario.horizon_s
    mean_s = (tasks["ended_s"] - tasks["arrived_s"]).mean()
    assert np.mean(seen) == pytest.approx(rate_hz * mean_s, rel=0.05)


def test_one_slow_run_does_not_keep_a_board_out_for_ever():
    forecast = Forecast(replace(CROWD, edges=1, front_refuses=True))
    forecast.encoded(0, 0, latency_s=50.0, energy_j=1.0, now_s=0.0)
    assert forecast.place(0, deadline_s=8.0, now_s=5.0) == NOBODY
    assert forecast.place(0, deadline_s=14.0, now_s=11.0) == 0


def test_a_board_that_is_not_known_is_tried_as_soon_as_it_is_idle():
    forecast = Forecast(replace(CROWD, edges=3))
    forecast.encoded(0, 0, latency_s=0.1, energy_j=2.0, now_s=1.0)
    forecast.encoded(1, 0, latency_s=0.3, energy_j=3.0, now_s=1.0)
    assert forecast.latency_s[0, 2] == pytest.approx(0.2)
    assert forecast.energy_j[0, 2] == 2.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(0.0, 4.0))
def test_tasks_are_placed_as_the_front_of_the_running_system_places_them(seed, boards, left_s):
    rng = np.random.default_rng(seed)
    low, high = ([0.0], [0.05], [1.0]), ([3.0], [0.2], [1.3])
    backlog_s, latency_s, energy_j = rng.uniform(low, high, (3, boards))
    image = frozenset(["image"])
    candidates = [
        Candidate(f"{number}", image, {"image": Prediction(latency, energy)}, backlog_s=wait)
        for number, (wait, latency, energy) in enumerate(
            zip(backlog_s.tolist(), latency_s.tolist(), energy_j.tolist(), strict=True)
        )
    ]
    mine = placed(backlog_s + latency_s, energy_j, left_s)
    mine = soonest(backlog_s, latency_s, left_s) if mine == NOBODY else mine
    try:
        theirs = int(place(["image"], candidates, left_s).name)
    except NoAgentFits:
        theirs = NOBODY
    assert mine == theirs


def test_a_board_in_a_warm_room_slows_at_work_and_recovers_at_rest():
    board = Board(0, 0, Fleet(scatter=0.0, warm_share=1.0))
    arm = board.space.arm(component="gpu", power_w=60, load=1.0)
    first_s, now_s = board.run(arm, "image", 0.0).true_latency_s, 0.0
    for _ in range(3000):
        now_s += board.run(arm, "image", now_s).latency_s
    assert board.run(arm, "image", now_s).true_latency_s > 1.1 * first_s
    assert board.run(arm, "image", now_s + 600.0).true_latency_s == pytest.approx(first_s)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30), st.floats(0.0, 1e7))
def test_a_fair_split_gives_nobody_more_than_wanted_and_leaves_nothing_that_is_wanted(
    wanted, total
):
    given_ = max_min_share(wanted, total)
    assert (given_ <= np.array(wanted) + 1e-6).all()
    assert given_.sum() == pytest.approx(min(total, sum(wanted)), abs=1e-3)
    short = given_ < np.array(wanted) - 1e-3
    if short.any():
        assert given_.max() <= given_[short].min() + 1e-3


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30))
def test_jains_index_lies_between_one_over_the_number_and_one(shares):
    assert 1 / len(shares) - 1e-9 <= jain_index(shares) <= 1 + 1e-9
    assert jain_index([2, 2, 2]) == 1 and jain_index([6, 0, 0]) == pytest.approx(1 / 3)
