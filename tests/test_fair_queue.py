"""The queue in front of a device."""

import math
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from mllm_sched.edge.fair_queue import Entry, FairQueue, QueueFull

COSTS = st.sampled_from([0.125, 0.25, 0.5, 1.0])  # exact in binary, so that turns may be equal
WEIGHTS = {"ann": 1.0, "bob": 2.0, "eve": 0.5, "dan": 1.0}


def entry(user="ann", ends_s=math.inf, cost_s=1.0, kind=None, **more):
    return Entry(user, kind, more.pop("arrived_s", 0.0), ends_s, cost_s, **more)


def filled(*entries, waiting=1000, per_user=1000):
    queue = FairQueue(waiting, per_user)
    for one in entries:
        queue.put(one)
    return queue


def served(queue, number, sizes=(1,), now_s=0.0):
    return [one for _ in range(number) for one in queue.take(now_s, sizes)]


def test_users_who_stand_equally_go_by_the_deadline_of_their_first_entry():
    entries = [entry("ann", 5), entry("bob", 4), entry("eve", 6), entry("eve", 3)]
    assert [one.ends_s for one in served(filled(*entries), 4)] == [3, 4, 5, 6]


def test_an_idle_user_builds_up_no_credit():
    queue = filled(*[entry("ann") for _ in range(50)])
    served(queue, 40)
    for _ in range(10):
        queue.put(entry("bob"))
    assert [one.user for one in served(queue, 6)] in (["bob", "ann"] * 3, ["ann", "bob"] * 3)


def test_what_a_user_with_nothing_waiting_took_beyond_the_expected_is_charged_too():
    queue = filled(entry("ann"))
    (long,) = queue.take(0.0)
    queue.charge(long, 5.0)
    for user in ("ann", *["bob"] * 6):
        queue.put(entry(user, arrived_s=1.0))
    assert [one.user for one in served(queue, 7)] == ["bob"] * 5 + ["ann", "bob"]


def test_once_all_work_is_done_everyone_starts_as_equals():
    queue = filled(entry("ann", cost_s=5.0))
    served(queue, 1)
    queue.put(entry("bob", 9.0, arrived_s=100.0))
    queue.put(entry("ann", 8.0, arrived_s=100.0))
    assert [one.user for one in served(queue, 2)] == ["ann", "bob"]


def test_entries_of_one_kind_go_as_the_largest_batch_that_can_be_filled():
    images = [entry(user, kind="image") for user in "abcdefg"]
    queue = filled(*images[:3], entry("h", kind="audio"), *images[3:])
    sizes = [len(queue.take(0.0, (1, 2, 4))) for _ in range(4)]
    assert sizes == [4, 1, 2, 1] and not queue  # by arrival: a-d, the audio, e and f, g
    assert len(filled(entry("ann"), entry("bob")).take(0.0, (1, 2))) == 1  # None is no kind


def test_entries_beyond_the_size_that_can_be_filled_stay_where_they_were_uncharged():
    first, second, third = (entry(user, kind="image") for user in "abc")
    queue = filled(first, second, third)
    assert queue.take(0.0, (1, 4)) == [first]
    queue.put(entry("d"))
    assert served(queue, 3)[:2] == [second, third] and not queue


tasks = st.lists(
    st.tuples(st.sampled_from(sorted(WEIGHTS)), COSTS, st.integers(0, 5)), min_size=1, max_size=40
)


@given(tasks, st.integers(0, 10))
def test_what_is_said_to_go_before_an_entry_is_what_goes_before_it(given_tasks, gone):
    entries = [
        entry(user, ends_s, cost_s, weight=WEIGHTS[user]) for user, cost_s, ends_s in given_tasks
    ]
    queue, arrival = filled(*entries[:-1]), entries[-1]
    waiting = set(entries) - set(served(queue, gone))
    said_s = queue.ahead_s(arrival)
    queue.put(arrival)
    assert queue.ahead_s(arrival) == said_s
    said = {one: queue.ahead_s(one) for one in waiting}
    taken_s = 0.0
    while batch := queue.take(0.0):
        assert said[batch[0]] == taken_s
        taken_s += batch[0].cost_s


@given(
    st.lists(
        st.tuples(st.lists(COSTS, min_size=30, max_size=30), st.sampled_from([0.5, 1.0, 2.0]))
    ),
    st.sampled_from([(1,), (1, 2), (1, 2, 4)]),
)
@settings(max_examples=50)
def test_of_users_with_work_none_gets_ahead_of_another_by_more_than_the_theory_says(users, sizes):
    """Theorem 1 of Goyal et al.: by the largest cost / weight of each; a batch is one more."""
    queue = filled(
        *[
            entry(str(user), cost_s=cost_s, kind="image", weight=weight)
            for user, (costs, weight) in enumerate(users)
            for cost_s in costs
        ]
    )
    had = {str(user): 0.0 for user in range(len(users))}
    left = dict.fromkeys(had, 30)
    largest = {str(u): max(costs) / weight for u, (costs, weight) in enumerate(users)}
    riding = max(sizes) * max(largest.values(), default=0.0) if max(sizes) > 1 else 0.0
    while had and min(left.values()) > max(sizes):
        for one in queue.take(0.0, sizes):
            had[one.user] += one.share_s
            left[one.user] -= 1
        for a in had:
            for b in had:
                assert had[a] - had[b] <= largest[a] + largest[b] + riding + 1e-9


@given(st.integers(1, 4), st.integers(1, 60), COSTS, COSTS, st.sampled_from([(1,), (1, 2, 4)]))
@settings(max_examples=30)
def test_a_flood_delays_a_single_task_by_at_most_one_turn_of_each_other_user(
    others, rate, flood_cost_s, cost_s, sizes
):
    queue, names = FairQueue(64, 16), [f"flood {number}" for number in range(others)]

    def flood():
        for name in names:
            for _ in range(rate):
                with suppress(QueueFull):
                    queue.put(entry(name, -1.0, flood_cost_s, "image"))  # as urgent as can be

    for _ in range(30):
        flood()
        queue.take(0.0, sizes)
    flood()
    mine = entry("quiet", math.inf, cost_s, "audio")
    queue.put(mine)
    waited_s = 0.0
    while mine not in (batch := queue.take(0.0, sizes)):
        waited_s += sum(one.cost_s for one in batch)
        flood()
    assert waited_s <= others * max(sizes) * flood_cost_s


class Model(RuleBasedStateMachine):
    """Any order of calls, beside plain sets."""

    entries = Bundle("entries")

    @initialize(waiting=st.integers(1, 8), per_user=st.integers(1, 4))
    def begin(self, waiting, per_user):
        self.queue = FairQueue(waiting, per_user)
        self.inside, self.order, self.now_s = {}, count(), 0.0
        self.unpaid = []

    def of_user(self, user):
        return [one for one in self.inside if one.user == user]

    @rule(target=entries, task=st.tuples(st.sampled_from(sorted(WEIGHTS)), COSTS))
    def put(self, task):
        user, cost_s = task
        number = next(self.order)
        one = entry(user, self.now_s + number % 5, cost_s, "ia"[number % 2], weight=WEIGHTS[user])
        if not self.has_to_be_refused(one):
            if (out := self.queue.put(one)) is not None:
                assert out is self.latest_of(out.user)
                assert self.beside_s(out.user) == max(map(self.beside_s, WEIGHTS))
                del self.inside[out]
            self.inside[one] = number
            return one
        with pytest.raises(QueueFull):
            self.queue.put(one)
        return one

    def has_to_be_refused(self, one):
        mine = self.of_user(one.user)
        if len(mine) == self.queue.per_user or len(self.inside) < self.queue.waiting:
            return len(mine) == self.queue.per_user
        return max(map(self.beside_s, WEIGHTS)) <= sum(other.share_s for other in mine)

    def latest_of(self, user):
        return max(self.of_user(user), key=lambda one: (one.ends_s, self.inside[one]))

    def beside_s(self, user):
        """What it has waiting beside the entry that would have to go."""
        theirs = self.of_user(user)
        return sum(one.share_s for one in theirs) - self.latest_of(user).share_s if theirs else 0.0

    @rule(sizes=st.sampled_from([(1,), (1, 2), (1, 3), (4,)]))
    def take(self, sizes):
        first = self.queue.first
        batch = self.queue.take(self.now_s, sizes)
        assert first is (batch[0] if batch else None)
        assert bool(batch) == bool(self.inside)  # work-conserving
        assert len(batch) in (0, 1, *sizes)
        assert len({one.kind for one in batch}) <= 1
        for one in batch:
            of_user = self.of_user(one.user)
            assert one is min(of_user, key=lambda other: (other.ends_s, self.inside[other]))
            del self.inside[one]
        self.unpaid += batch

    @rule(took_s=st.sampled_from([0.0, 0.25, 3.0]))
    def charge(self, took_s):
        if self.unpaid:
            self.queue.charge(self.unpaid.pop(0), took_s)

    @rule(one=consumes(entries))
    def remove(self, one):
        self.queue.remove(one)
        self.inside.pop(one, None)

    @rule(step_s=st.sampled_from([0.0, 1.0, 20.0]))
    def expire(self, step_s):
        self.now_s += step_s
        late = self.queue.expired(self.now_s, lambda one: one.cost_s)
        assert set(late) == {
            one for one in self.inside if self.now_s + one.cost_s > one.ends_s
        } and len(late) == len(set(late))
        for one in late:
            del self.inside[one]

    @invariant()
    def nothing_is_lost_doubled_or_beyond_the_bounds(self):
        if not hasattr(self, "queue"):
            return
        assert set(self.queue._due) == set(self.inside) and len(self.queue) == len(self.inside)
        assert len(self.queue) <= self.queue.waiting
        assert all(len(self.of_user(user)) <= self.queue.per_user for user in WEIGHTS)
        assert self.queue.backlog_s == pytest.approx(sum(one.cost_s for one in self.inside))


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=30)
