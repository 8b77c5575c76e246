"""Whether a task can be answered in time."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge.admission import FORGOTTEN_S, Admission, LetIn
from mllm_sched.edge.ewma import KINDS, LEAP, MEMORY, Running
from mllm_sched.edge.fair_queue import Entry, FairQueue
from mllm_sched.edge.refusals import Refusal


def measured(encode_s=0.5, answer_s=1.0, times=20, **settings):
    admission = Admission(**settings)
    for _ in range(times):
        admission.encoded("image", encode_s, 2.0)
        admission.answered(answer_s)
    return admission


def entry(admission, ends_s, modality="image", user="ann"):
    return Entry(user, None, 0.0, ends_s, admission.encode_s(modality))


def refused(admission, left_s, ahead_s=0.0, now_s=0.0):
    """Why a task is refused, or None."""
    try:
        admission.check(entry(admission, now_s + left_s), ahead_s, now_s)
    except Refusal as refusal:
        return refusal
    return None


def test_what_follows_of_the_same_task_counts_too():
    admission = measured()
    task = entry(admission, ends_s=4.0)
    admission.check(task, 0.5, 0.0, rest_s=1.5)
    assert admission.service_s(task, 1.5) == admission.service_s(task) + 1.5
    with pytest.raises(Refusal, match="too-late"):
        admission.check(task, 1.5, 0.0, rest_s=1.5)
    with pytest.raises(Refusal, match="cannot"):
        admission.check(task, 0.0, 0.0, rest_s=3.0)


def test_a_task_is_let_in_as_long_as_what_goes_before_it_leaves_it_time():
    admission = measured()
    assert refused(admission, left_s=2.0, ahead_s=0.5) is None
    late = refused(admission, left_s=2.0, ahead_s=0.75)
    assert (late.reason, late.code.name) == ("too-late", "RESOURCE_EXHAUSTED")
    assert late.retry_s == pytest.approx(0.25)
    assert "answered in 2.25 s, and 2 s are left" in str(late)


def test_what_even_an_idle_system_cannot_do_is_not_to_be_tried_again():
    cannot = refused(measured(), left_s=1.0)
    assert (cannot.reason, cannot.code.name) == ("cannot", "FAILED_PRECONDITION")
    assert "1.5 s at best, and 1 s are left; send it with a later deadline" in str(cannot)
    assert cannot.retry_s == 0
    assert refused(measured(), left_s=-1.0).reason == "cannot"


def test_what_was_never_measured_refuses_nobody_whose_deadline_is_not_over():
    admission = Admission()
    assert refused(admission, left_s=0.01, ahead_s=100.0) is None
    assert refused(admission, left_s=0.0).reason == "cannot"


def test_a_prediction_counts_until_something_is_measured():
    admission = Admission(unknown_s=0.3)
    assert admission.encode_s("image") == 0.3
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
    assert admission.encode_s("video", "short") == 1.0
    assert admission.encode_s("video", "long") == 5.0
    assert admission.encode_s("video", "other") == admission.encode_s("video") == 2.5
    for number in range(2 * KINDS):
        admission.encoded("video", 1.0, kind=number)
    assert len(admission._of_kind) == KINDS


def test_behind_others_a_task_must_fit_even_if_it_takes_longer_than_usual():
    steady, shaky = measured(), measured()
    for _ in range(30):
        shaky.answered(0.5)
        shaky.answered(1.5)
    assert refused(steady, left_s=2.1, ahead_s=0.5) is None
    assert refused(shaky, left_s=2.1, ahead_s=0.5).reason == "too-late"
    assert refused(shaky, left_s=2.1) is None


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


def test_a_few_slow_runs_do_not_shut_the_door_for_good():
    admission = measured(encode_s=8.0, probe_s=5.0)
    now_s, let_in = 0.0, []
    while len(let_in) < 5 and now_s < 100:
        if refused(admission, left_s=3.0, now_s=now_s) is None:
            let_in.append(now_s)
            admission.encoded("image", 0.5)  # it is fast again
        now_s += 0.5
    assert let_in == [5.0, 5.5, 6.0, 6.5, 7.0]


def test_a_door_that_is_shut_with_reason_opens_for_one_at_a_time():
    admission, let_in = measured(encode_s=8.0, probe_s=5.0), []
    for tick in range(300):
        if refused(admission, left_s=3.0, now_s=tick / 10) is None:
            let_in.append(tick / 10)
    assert let_in == [5.0, 10.0, 15.0, 20.0, 25.0]


def test_a_task_that_is_let_through_to_see_is_not_given_up_in_the_queue():
    admission, queue = measured(encode_s=8.0, probe_s=0.0), FairQueue()
    probe = entry(admission, ends_s=3.0)
    let_in = {probe: admission.check(probe, 0.0, 0.0)}
    hopeless = entry(admission, ends_s=3.0)
    queue.put(probe)
    queue.put(hopeless)

    def service_s(one):
        return admission.service_s(one, 0.0, let_in.get(one, LetIn.FITS))

    assert let_in[probe] is LetIn.PROBE
    assert queue.expired(0.0, service_s) == [hopeless]


def test_a_task_that_was_let_in_with_nothing_before_it_is_not_given_up_at_once():
    admission = measured()
    for encode_s in (0.3, 0.7) * 10:
        admission.encoded("image", encode_s)
    one = entry(admission, ends_s=1.45)  # a little less than the mean
    assert admission.check(one, 0.0, 0.0) is LetIn.CHANCE
    least_s = admission.service_s(one, 0.0, LetIn.CHANCE)
    assert 1.0 < least_s < 1.45 < admission.service_s(one)
    rest_s = admission.service_s(one, 1.0, LetIn.CHANCE) - least_s
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


def test_a_lucky_wait_teaches_no_more_than_that_it_may_be_as_predicted():
    admission = waited(3.0)
    admission.waited(1.0, 0.01, 0.0)
    assert 2.5 < admission.wait_s(1.0) < 3.0
    for _ in range(200):
        admission.waited(1.0, 0.01, 0.0)
    assert admission.wait_s(1.0) == pytest.approx(1.0, rel=0.01)


def test_waits_as_long_as_can_be_shut_nobody_out_for_good():
    admission = measured(encode_s=0.25, answer_s=0.3)
    for _ in range(100):
        admission.waited(0.25, 1000.0, 0.0, in_vain=True)
    assert admission.wait_s(1.0) <= LEAP
    assert refused(admission, left_s=4.0, ahead_s=1.5, now_s=1.0).reason == "too-late"
    with pytest.raises(Refusal, match="too-late"):
        admission.check_first(1.5, 1.0, ends_s=5.0)
    later_s = 1.1 * FORGOTTEN_S
    admission._silent_since_s = later_s  # nobody is let in to see
    admission.check_first(1.5, later_s, ends_s=later_s + 4.0)
    assert refused(admission, left_s=4.0, ahead_s=1.5, now_s=later_s) is None
    assert admission.wait_s(1.0) == 1.0


def test_what_is_encoded_alone_is_not_predicted_by_batches_of_others():
    admission = Admission()
    for _ in range(9):
        admission.encoded("image", 0.2, kind="photograph", batch=4)
    admission.encoded("video", 1.0, kind="clip")
    admission.answered(0.3)
    video = Entry("ann", "clip", 0.0, 3.0, admission.encode_s("video", "clip"))
    image = Entry("ann", "photograph", 0.0, 3.0, admission.encode_s("image", "photograph"))
    assert admission.service_s(image) == pytest.approx(4 * 0.2 + 0.3)
    assert admission.service_s(video) == pytest.approx(1.0 + 0.3)
    assert admission.check(video, 0.0, 0.0) is LetIn.FITS
    assert admission.check(replace(image, ends_s=0.6), 0.0, 0.0) is LetIn.CHANCE  # alone it fits


def test_overload_is_shed_and_those_let_in_are_answered_in_time():
    rng, admission, queue = np.random.default_rng(0), Admission(), FairQueue()
    now_s = free_s = 0.0
    late = answered = shed = 0
    for number in range(4000):  # twice as much as can be served
        now_s += rng.exponential(0.05)
        while queue and free_s <= now_s:
            shed += len(queue.expired(free_s, admission.service_s))
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
            admission.check(one, queue.ahead_s(one) + free_s - now_s, now_s)
            queue.put(one)
        except Refusal:
            shed += 1
    assert late / answered < 0.05
    assert 0.4 < shed / 4000 < 0.6 and answered > 1800


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60))
def test_a_mean_lies_within_what_was_measured_and_its_spread_is_not_negative(values):
    running = Running()
    for value in values:
        running.add(value)
    assert min(values) - 1e-9 <= running.mean <= max(values) + 1e-9
    assert 0 <= running.least <= running.mean and running.spread >= 0


def test_a_mean_follows_a_change_and_one_value_far_off_pulls_little():
    running = Running(expected=7.0)
    assert running.known and running.least == 0
    for _ in range(MEMORY):
        running.add(1.0)
    running.add(1000.0)
    assert running.mean < 1.25
    for _ in range(5 * MEMORY):
        running.add(10.0)
    assert running.mean == pytest.approx(10.0, rel=0.1)
    running.add(1.0)
    assert running.mean == 1.0


@pytest.mark.parametrize("nothing", [math.nan, math.inf, 0.0, -1.0])
def test_what_is_no_measurement_changes_no_mean(nothing):
    running = Running()
    running.add(nothing)
    assert not running.known
    running.add(2.0)
    running.add(nothing)
    assert (running.mean, running.count) == (2.0, 1)
