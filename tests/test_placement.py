"""Which edge agent a task goes to."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.edge.placement import (
    PROBE_S,
    PROBE_TASKS,
    Candidate,
    NoAgentFits,
    Prediction,
    place,
)

MODALITIES = ("audio", "image", "video")
ALL = frozenset(MODALITIES)
seconds = st.floats(0, 100)


def agent(name="a", latency_s=0.1, energy_j=1.0, above=False, **other):
    prediction = Prediction(latency_s, energy_j, infeasible=above)
    return Candidate(name, ALL, dict.fromkeys(MODALITIES, prediction), **other)


@st.composite
def agents(draw, due=False):
    names = draw(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=6))
    prediction = st.builds(Prediction, seconds, seconds, st.booleans())
    return [
        Candidate(
            name,
            draw(st.frozensets(st.sampled_from(MODALITIES))),
            draw(st.dictionaries(st.sampled_from(MODALITIES), prediction)),
            draw(seconds),
            draw(seconds),
            draw(st.integers(0, 9)),
            draw(st.floats(0, 2 * PROBE_S)) if due else 0.0,
            draw(st.integers(0, 2 * PROBE_TASKS)) if due else 0,
        )
        for name in names
    ]


def outcome(*asked):
    try:
        return place(*asked)
    except NoAgentFits as none:
        return none.reason, str(none)


@settings(max_examples=50)
@given(agents(due=True), st.lists(st.sampled_from(MODALITIES), max_size=4), seconds, st.randoms())
def test_the_choice_is_the_same_in_any_order_and_in_time_and_able(known, items, left_s, random):
    shuffled = random.sample(known, len(known))
    chosen = outcome(items, known, left_s)
    assert chosen == outcome(items, shuffled, left_s)
    if isinstance(chosen, tuple):
        return
    there = {one.name: one for one in known}[chosen.name]
    assert there.modalities >= set(items)
    assert chosen.total_s - there.backlog_s <= left_s
    assert chosen.total_s == there.backlog_s + chosen.encode_s + there.answer_s
    if not there.is_due and there.is_infeasible(items):
        assert all(
            one.is_infeasible(items) or isinstance(outcome(items, [one], left_s), tuple)
            for one in known
            if not set(items) - set(one.predictions)  # else its latency is a guess from the others
        )


@settings(max_examples=50)
@given(agents(), st.lists(st.sampled_from(MODALITIES), max_size=4), seconds, seconds)
def test_more_time_never_sheds_a_task_nor_costs_energy(known, items, left_s, more_s):
    chosen, later = outcome(items, known, left_s), outcome(items, known, left_s + more_s)
    if isinstance(chosen, tuple):
        return
    assert not isinstance(later, tuple)
    if chosen.total_s > left_s:  # as soon as it can be, whatever it costs
        return
    there = {one.name: one for one in known}
    if not there[chosen.name].is_infeasible(items):
        assert not there[later.name].is_infeasible(items)
        assert later.energy_j <= chosen.energy_j * 1.05 + 1e-9


FRUGAL, FAST = agent("frugal", 0.5, 1.0), agent("fast", 0.1, 3.0)
GONE = agent("a", energy_j=float("nan"))  # its meter
SLOW, SLOWER = agent("slow", 1.0, 2.0, above=True), agent("slower", 2.0, 1.0, above=True)
EXPENSIVE = agent("expensive", 3.0, 9.0)
BUSY = [agent("a", backlog_s=9.0), agent("b", backlog_s=5.0), agent("c", 2.0)]


@pytest.mark.parametrize(
    ("agents", "left_s", "chosen"),
    [
        ([FRUGAL, FAST], math.inf, "frugal"),
        ([FRUGAL, FAST], 0.3, "fast"),
        ([replace(FRUGAL, backlog_s=5.0), FAST], 4.0, "fast"),
        ([agent("a", energy_j=1.0, backlog_s=2.0), agent("b", energy_j=1.04)], math.inf, "b"),
        ([GONE], math.inf, "a"),
        (BUSY, 1.0, "b"),  # the soonest decides: its user may have a place before the rest
        ([SLOW, SLOWER, EXPENSIVE], math.inf, "expensive"),
        ([SLOW, SLOWER, EXPENSIVE], 2.5, "slow"),
        ([SLOW, SLOWER], math.inf, "slow"),  # done first, whatever it takes
    ],
)
def test_the_frugal_agent_within_its_limit_is_taken_unless_it_would_be_late(agents, left_s, chosen):
    assert place(["image"], agents, left_s).name == chosen


def test_what_is_not_known_of_an_agent_is_guessed_from_the_others():
    known = [agent("a", 0.1, 1.0, backlog_s=0.5), agent("b", 0.3, 9.0)]
    placed = place(["image", "audio"], [*known, Candidate("new", ALL)])
    assert (placed.name, placed.encode_s, placed.energy_j) == ("new", 0.4, 2.0)
    assert place(["image"], [GONE, agent("b", energy_j=2.0)]).energy_j == 2.0


def test_what_no_agent_can_do_is_told_with_the_reason():
    for agents in ([agent(answer_s=1.0), agent("b", answer_s=2.0)], [replace(SLOW, answer_s=0.1)]):
        with pytest.raises(NoAgentFits, match=r"1\.10 s needed, 0\.50 s left") as late:
            place(["image"], agents, 0.5)
        assert late.value.reason == "too-late"
    with pytest.raises(NoAgentFits, match="no edge agent here encodes audio") as cannot:
        place(["audio"], [Candidate("a", frozenset(["image"]))])
    assert cannot.value.reason == "cannot"


LEFT_ALONE = {"idle_s": PROBE_S, "passed": PROBE_TASKS}


@pytest.mark.parametrize(
    "left",
    [agent("left", 1.0, 1.06, **LEFT_ALONE), agent("left", 1.0, 9.0, above=True, **LEFT_ALONE)],
)
def test_an_agent_that_was_left_alone_for_long_gets_a_task_if_it_can_be_in_time(left):
    usual = agent("usual", 0.1, 1.0)
    assert place(["image"], [usual, left]).name == "left"
    assert place(["image"], [usual, left], 0.5).name == "usual"
    for soon in (replace(left, idle_s=PROBE_S / 2), replace(left, passed=PROBE_TASKS - 1)):
        assert place(["image"], [usual, soon]).name == "usual"
