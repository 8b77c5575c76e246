"""Whether a task can be answered in time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge.admission import FORGOTTEN_S, KINDS, LEAP, MEMORY, Admission, Ewma, LetIn
from mllm_sched.edge.fair_queue import Entry, FairQueue
from mllm_sched.edge.refusals import Refusal


def measured(encode_s=0.5, answer_s=1.0, times=20):
    admission = Admission()
    for _ in range(times):
        admission.encoded("image", encode_s, 2.0)
        admission.answered(answer_s)
    return admission


def refused(admission, left_s, ahead_s=0.0, now_s=0.0, more_s=0.0):
    """Why an image, and items of ``more_s`` after it, are refused, or None."""
    encode_s = admission.encode_s("image") + more_s
    try:
        admission.check(encode_s, now_s + left_s, ahead_s, now_s)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize(
    ("given", "reason", "said", "retry_s"),
    [
        ({"left_s": 2.0, "ahead_s": 0.75}, "too-late", "in 2.25 s, and", 0.25),
        ({"left_s": 4.0, "ahead_s": 1.5, "more_s": 1.5}, "too-late", "", 0.5),
        ({"left_s": 1.0}, "cannot", "1.5 s at best, and 1 s are left", 0.0),
        ({"left_s": 4.0, "more_s": 3.0}, "cannot", "later deadline", 0.0),
        ({"left_s": -1.0}, "cannot", "0 s are left", 0.0),
    ],
)
def test_a_task_that_would_be_late_is_refused_with_the_reason(given, reason, said, retry_s):
    refusal = refused(measured(), **given)
    assert refusal.reason == reason
    assert refusal.retry_s == pytest.approx(retry_s) and said in str(refusal)


def test_a_task_is_let_in_as_long_as_what_goes_before_it_leaves_it_time():
    assert refused(measured(), left_s=2.0, ahead_s=0.5) is None
    assert refused(Admission(), left_s=0.01, ahead_s=100.0) is None  # nothing was measured
    assert refused(Admission(), left_s=0.0).reason == "cannot"
    shaky = measured()
    for _ in range(30):
        shaky.answered(0.5)
        shaky.answered(1.5)
    assert refused(shaky, left_s=2.1) is None
    assert refused(shaky, left_s=2.1, ahead_s=0.5).reason == "too-late"  # it may take longer


def test_a_prediction_counts_until_something_is_measured():
    admission = Admission()
    admission.expect("image", 2.0, 5.0)
    assert admission.encode_s("image") == 2.0
    admission.encoded("image", 0.4)
    admission.expect("image", 9.0)
    assert admission.encode_s("image") == 0.4


def test_predictions_are_told_by_modality_and_a_meter_that_was_gone_leaves_a_gap():
    admission = Admission()
    admission.encoded("video", 2.0, math.nan)
    admission.encoded("audio", 1.0, 3.0)
    admission.encoded("audio", 1.0, math.nan)
    audio, video = admission.predictions()
    assert (audio.modality, audio.latency_s, audio.energy_j) == ("audio", 1.0, 3.0)
    assert video.modality == "video" and math.isnan(video.energy_j)


def test_kinds_of_a_modality_have_means_of_their_own_and_are_bounded():
    admission = Admission()
    admission.encoded("video", 1.0, kind="short")
    admission.encoded("video", 5.0, kind="long")
    assert [admission.encode_s("video", kind) for kind in ("short", "long")] == [1.0, 5.0]
    assert admission.encode_s("video", "other") == admission.encode_s("video") == 2.5
    for number in range(KINDS):
        admission.encoded("video", 1.0, kind=number)
    assert admission.encode_s("video", "long") == admission.encode_s("video")  # forgotten


def test_before_the_upload_only_what_is_hopeless_is_refused():
    admission = measured()
    admission.encoded("video", 9.0)
    admission.check_first(0.0, 0.0, ends_s=1.6)
    with pytest.raises(Refusal, match="cannot"):
        admission.check_first(0.0, 0.0, ends_s=1.0)
    with pytest.raises(Refusal, match=r"too-late.*ask again in") as late:
        admission.check_first(3.0, 0.0, ends_s=4.0)
    assert late.value.retry_s == pytest.approx(0.5)
    Admission().check_first(100.0, 0.0, ends_s=1.0)


@pytest.mark.parametrize(
    ("recovers", "let_in"), [(True, [5.0, 5.5, 6.0, 6.5]), (False, [5.0, 10.0, 15.0, 20.0])]
)
def test_where_all_are_refused_one_at_a_time_shows_whether_it_is_still_so(recovers, let_in):
    admission, times = measured(encode_s=8.0), []
    for tick in range(45):
        if len(times) < 4 and refused(admission, left_s=3.0, now_s=tick / 2) is None:
            times.append(tick / 2)
            if recovers:
                admission.encoded("image", 0.5)
    assert times == let_in


def test_a_task_that_is_let_through_to_see_is_not_given_up_in_the_queue():
    admission = measured(encode_s=8.0)
    assert refused(admission, left_s=3.0).reason == "cannot"
    let_in = admission.check(8.0, ends_s=9.0, ahead_s=0.0, now_s=6.0)
    assert let_in is LetIn.PROBE
    assert admission.service_s(8.0, None, let_in) == 0.0


def test_a_task_that_was_let_in_with_nothing_before_it_is_not_given_up_at_once():
    admission = measured()
    for encode_s in (0.3, 0.7) * 10:
        admission.encoded("image", encode_s)
    encode_s = admission.encode_s("image")
    assert admission.check(encode_s, 1.45, 0.0, 0.0) is LetIn.CHANCE  # a little below the mean
    least_s = admission.service_s(encode_s, None, LetIn.CHANCE)
    assert 1.0 < least_s < 1.45 < admission.service_s(encode_s)
    rest_s = admission.service_s(encode_s + 1.0, None, LetIn.CHANCE) - least_s
    assert 0 < rest_s < 1.0  # so for all its items


def waited(ratio, times=60, ahead_s=1.0):
    admission = measured()
    for _ in range(times):
        admission.waited(ahead_s, ratio * ahead_s, 0.0)
    return admission


def test_waits_that_take_longer_than_the_encoding_before_them_are_reckoned_with():
    assert refused(measured(), left_s=2.6, ahead_s=1.0) is None
    late = refused(waited(3.0), left_s=2.6, ahead_s=1.0)
    assert late.reason == "too-late" and late.retry_s > 1.0
    with pytest.raises(Refusal, match="too-late"):
        waited(3.0).check_first(1.0, 0.0, ends_s=4.0)
    assert refused(waited(3.0), left_s=2.6) is None  # nothing goes before it


def test_who_gave_up_says_only_that_waits_may_be_as_long():
    admission = waited(3.0)
    before_s = admission.wait_s(1.0)
    for _ in range(20):
        admission.waited(1.0, 0.5, 0.0, in_vain=True)
    admission.waited(0.01, 3.0, 0.0)  # the call under way
    assert admission.wait_s(1.0) == before_s == pytest.approx(3.0, rel=0.1)
    admission.waited(1.0, 3.9, 0.0, in_vain=True)
    assert admission.wait_s(1.0) > before_s
    for _ in range(200):
        admission.waited(1.0, 0.01, 0.0)  # by luck
    assert admission.wait_s(1.0) == pytest.approx(1.0, rel=0.01)


def test_waits_as_long_as_can_be_shut_nobody_out_for_good():
    admission = measured(encode_s=0.25, answer_s=0.3)
    for _ in range(100):
        admission.waited(0.25, 1000.0, 0.0, in_vain=True)
    assert admission.wait_s(1.0) <= LEAP
    later_s = 1.1 * FORGOTTEN_S
    admission.check_first(1.5, later_s, ends_s=later_s + 4.0)
    assert refused(admission, left_s=4.0, ahead_s=1.5, now_s=later_s) is None
    assert admission.wait_s(1.0) == 1.0


def test_what_is_encoded_alone_is_not_predicted_by_batches_of_others():
    admission = Admission()
    for _ in range(9):
        admission.encoded("image", 0.2, kind="photograph", batch=4)
    admission.encoded("video", 1.0, kind="clip")
    admission.answered(0.3)
    assert admission.service_s(0.2, "photograph") == pytest.approx(4 * 0.2 + 0.3)
    assert admission.service_s(1.0, "clip") == pytest.approx(1.0 + 0.3)
    assert admission.check(1.0, 3.0, 0.0, 0.0, "clip") is LetIn.FITS
    assert admission.check(0.2, 0.6, 0.0, 0.0, "photograph") is LetIn.CHANCE  # alone it fits


def test_overload_is_shed_and_those_let_in_are_answered_in_time():
    rng, admission, queue = np.random.default_rng(0), Admission(), FairQueue()
    now_s = free_s = 0.0
    late = answered = shed = 0
    for number in range(4000):  # twice as much as can be served
        now_s += rng.exponential(0.05)
        while queue and free_s <= now_s:
            shed += len(queue.expired(free_s, lambda one: admission.service_s(one.cost_s)))
            for one in queue.take(free_s):
                took_s = rng.lognormal(math.log(0.1), 0.3)
                free_s += took_s
                queue.charge(one, took_s)
                admission.encoded("image", took_s)
                answered += 1
                late += free_s > one.ends_s
        free_s = max(free_s, now_s)
        one = Entry(f"user {number % 20}", None, now_s, now_s + 1.0, admission.encode_s("image"))
        try:
            admission.check(one.cost_s, one.ends_s, queue.ahead_s(one) + free_s - now_s, now_s)
            queue.put(one)
        except Refusal:
            shed += 1
    assert late / answered < 0.05
    assert 0.4 < shed / 4000 < 0.6 and answered > 1800


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60))
def test_a_mean_lies_within_what_was_measured_and_its_spread_is_not_negative(values):
    ewma = Ewma()
    for value in values:
        ewma.add(value)
    assert min(values) - 1e-9 <= ewma.mean <= max(values) + 1e-9
    assert 0 <= ewma.least <= ewma.mean and ewma.spread >= 0


def test_a_mean_follows_a_change_and_one_value_far_off_pulls_little():
    ewma = Ewma(expected=7.0)
    assert ewma.known and ewma.least == 0
    for _ in range(MEMORY):
        ewma.add(1.0)
    for nothing in (1000.0, math.nan, math.inf, 0.0, -1.0):
        ewma.add(nothing)
    assert ewma.mean < 1.25
    for _ in range(5 * MEMORY):
        ewma.add(10.0)
    assert ewma.mean == pytest.approx(10.0, rel=0.1)
    ewma.add(1.0)
    assert ewma.mean == 1.0
