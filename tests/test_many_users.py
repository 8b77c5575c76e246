from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge.placement import Candidate, NoAgentFits, Prediction, place
from mllm_sched.experiments.fleet import Board, Fleet, experience
from mllm_sched.experiments.lineup import SAFE
from mllm_sched.experiments.many_users import (
    ANSWERED,
    NOBODY,
    OUTCOMES,
    UNDER_WAY,
    FleetScenario,
    Means,
    System,
    placed,
    play,
    soonest,
)
from mllm_sched.experiments.many_users_runs import (
    COLD,
    TOLD,
    capacity_hz,
    fairness,
    first_beyond,
    grid,
    jain_index,
    joins,
    max_min_share,
    measures,
    over_load,
    play_all,
    summarise,
)
from mllm_sched.experiments.runner import Rule

FIXED = Rule("Fixed at full power", "fixed")
ALIKE = Fleet(scatter=0.0, warm_share=0.0)
CROWD = FleetScenario(users=400, edges=2, llm_servers=4, warm_up_s=10.0, horizon_s=20.0)


@pytest.fixture(scope="module")
def crowd():
    return play(CROWD)


def test_every_task_is_answered_shed_late_or_under_way_and_none_twice(crowd):
    system = System(CROWD)
    tasks = system.run().tasks
    counts = tasks["outcome"].value_counts()
    assert set(counts.index) <= set(OUTCOMES)
    assert counts.sum() == len(system.requests) == len(tasks)
    assert counts[UNDER_WAY] == system.under_way
    assert tasks["ended_s"].isna().sum() == system.under_way


def test_an_answer_is_in_time_and_was_encoded(crowd):
    answered = crowd.tasks[crowd.tasks["outcome"] == ANSWERED]
    assert len(answered) > 100
    assert (answered["ended_s"] <= answered["deadline_s"] + 1e-9).all()
    assert answered[["encode_s", "energy_j", "llm_s"]].notna().all(axis=None)
    assert (answered["begun_s"] >= answered["arrived_s"]).all()


def test_a_shed_task_took_nothing_of_an_encoder(crowd):
    shed = crowd.tasks[crowd.tasks["outcome"].isin(["too-late", "expired", "queue-full"])]
    assert shed["encode_s"].isna().all()


def test_a_board_encodes_one_task_at_a_time(crowd):
    for _, tasks in crowd.tasks.dropna(subset="encode_s").groupby("board"):
        tasks = tasks.sort_values("begun_s")
        ends = (tasks["begun_s"] + tasks["encode_s"]).to_numpy()
        assert (tasks["begun_s"].to_numpy()[1:] >= ends[:-1] - 1e-9).all()


def test_the_llm_servers_hold_no_more_answers_than_they_have_places():
    scenario = replace(CROWD, llm_servers=1, horizon_s=30.0)
    row = measures(play(scenario))
    assert 0.9 < row["llm_busy"] < 1.05  # service that began before the window ends within it
    assert row["answered_hz"] < 1.1 * capacity_hz(scenario)["LLM servers"]


def test_the_same_scenario_has_the_same_outcome_and_another_seed_another():
    short = replace(CROWD, users=100, horizon_s=10.0)
    first, again = (play(short).tasks for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(play(replace(short, seed=1)).tasks)


@pytest.mark.slow
def test_the_table_does_not_hang_on_how_the_work_was_spread():
    case = ({"case": "short"}, replace(CROWD, users=100, warm_up_s=2.0, horizon_s=5.0))
    one, two = (play_all([case], 2, n_jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


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
    tasks = play(scenario).counted.dropna(subset="encode_s")
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
    tasks = system.run().counted
    rate_hz = len(tasks) / scenario.horizon_s
    mean_s = (tasks["ended_s"] - tasks["arrived_s"]).mean()
    assert np.mean(seen) == pytest.approx(rate_hz * mean_s, rel=0.05)


def test_throughput_rises_with_users_up_to_what_the_scarcest_part_can_do():
    runs = grid(
        [10, 100, 300, 600], [1], [8], 1, base=FleetScenario(rule=FIXED, fleet=ALIKE), n_jobs=1
    )
    answered = runs["answered_hz"].to_numpy()
    assert (np.diff(answered) > -0.05 * answered.max()).all()
    assert answered[:2] == pytest.approx(runs["least_hz"][:2], rel=0.15)
    assert answered[3] == pytest.approx(answered.max())
    assert runs["encoders_busy"].iloc[-1] == pytest.approx(1.0, abs=0.05)


def test_a_heavy_user_cannot_starve_light_ones_where_the_queue_is_fair():
    base = FleetScenario(
        users=20, edges=1, rule=FIXED, think_s=1.0, heavy_users=2, heavy_at_once=20
    )
    base = replace(base, llm_servers=16, warm_up_s=10.0, horizon_s=60.0)
    fair, alone = (measures(play(replace(base, fair=fair))) for fair in (True, False))
    assert fair["jain"] > alone["jain"]
    assert fair["light_answered"] > alone["light_answered"]
    assert fair["light_answered"] > fair["heavy_answered"] + 0.2


def test_users_alike_are_served_alike_under_overload():
    crowded = FleetScenario(
        users=40, edges=1, rule=FIXED, think_s=0.5, warm_up_s=10.0, horizon_s=60.0
    )
    assert fairness(play(crowded)) > 0.95


def test_a_warm_start_helps_on_boards_alike():
    table = joins(SAFE, [0.0], first=30, seeds=3, siblings=1, before=60, n_jobs=1)
    energy = table.set_index("start")["energy_over_oracle"]
    assert energy[TOLD] < energy[COLD] - 0.03
    assert (table["beyond"] == 0).all()


def test_one_slow_run_does_not_keep_a_board_out_for_ever():
    means = Means(1, 0.2)
    means.tell(0, 50.0, 1.0, now_s=0.0)
    assert placed(means.latency_s, means.energy_j, left_s=3.0) == NOBODY
    means.forget(before_s=10.0)
    assert placed(means.latency_s, means.energy_j, left_s=3.0) == 0


def test_a_board_that_is_not_known_is_tried_as_soon_as_it_is_idle():
    means = Means(3, 0.2)
    means.tell(0, 0.1, 2.0, now_s=1.0)
    means.tell(1, 0.3, 3.0, now_s=1.0)
    assert (means.latency_s[2], means.energy_j[2]) == pytest.approx((0.2, 2.0))


def test_boards_without_scatter_are_the_same_board_and_others_differ():
    one, two = (Board(number, 0, ALIKE).means["image"].latency_s for number in (0, 1))
    assert (one == two).all()
    assert (Board(0, 0).means["image"].latency_s != Board(1, 0).means["image"].latency_s).all()


def test_a_board_in_a_warm_room_slows_at_work_and_recovers_at_rest():
    board = Board(0, 0, Fleet(scatter=0.0, warm_share=1.0))
    arm = board.space.arm(component="gpu", power_w=60, load=1.0)
    first_s, now_s = board.run(arm, "image", 0.0).true_latency_s, 0.0
    for _ in range(3000):
        now_s += board.run(arm, "image", now_s).latency_s
    hot_s = board.run(arm, "image", now_s).true_latency_s
    rested_s = board.run(arm, "image", now_s + 600.0).true_latency_s
    assert hot_s > 1.1 * first_s
    assert rested_s == pytest.approx(first_s)


def test_experience_of_boards_is_a_table_that_a_scheduler_starts_from():
    board = Board(0, 0)
    board.run(board.space[59], "audio", 0.0)
    [row] = experience([board]).to_dict("records")
    assert (row["modality"], row["component"], row["power_w"]) == ("audio", "dla", 60)
    assert row["latency_s"] > 0


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


def test_the_first_load_beyond_a_threshold_is_found_for_every_case():
    runs = over_load({"a": replace(CROWD, rule=FIXED)}, [0.2, 3.0], 1, n_jobs=1)
    table = first_beyond(summarise(runs), ["shed", "beyond"])
    assert table.loc[0, "shed"] == 3.0
    assert np.isnan(table.loc[0, "beyond"])


@pytest.mark.parametrize(
    "wrong",
    [{"users": 0}, {"heavy_users": 101}, {"deadlines_s": (4.0, 2.0)}, {"shares": (0.5, 0.5, 0.5)}],
)
def test_a_scenario_that_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FleetScenario(**wrong)


def test_what_heavy_users_have_waiting_keeps_nobody_out_where_the_board_refuses():
    base = FleetScenario(
        users=20, edges=1, rule=FIXED, think_s=1.0, heavy_users=2, heavy_at_once=20
    )
    base = replace(base, llm_servers=16, warm_up_s=10.0, horizon_s=60.0)
    front, board = (measures(play(replace(base, front_refuses=it))) for it in (True, False))
    assert board["jain"] > 0.9
    assert board["jain"] > front["jain"]


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
