"""How many items share a call, as long as it keeps its limit."""

from mllm_sched.edge.admission import KINDS
from mllm_sched.edge.encoder_stage import LONGEST_REST, LOOKS, REST, BatchSizes


def slow(sizes, size, times=LOOKS):
    for _ in range(times):
        sizes.took("image", size, 0.5)


def test_nothing_larger_than_a_size_that_rests_is_run():
    sizes = BatchSizes([4, 1, 2], 0.3)
    slow(sizes, 2, LOOKS - 1)  # too few to judge it
    assert sizes.of("image") == (1, 2, 4)
    slow(sizes, 2)
    assert sizes.of("image") == (1,)
    assert sizes.of("audio") == (1, 2, 4)


def test_a_size_that_failed_rests_at_once_and_a_single_item_never():
    sizes = BatchSizes([1, 2, 4], 0.3)
    sizes.failed("image", 4)
    sizes.failed("image", 1)
    slow(sizes, 1, 30)
    assert sizes.of("image") == (1, 2)


def test_kinds_are_bounded_and_those_seen_last_are_known():
    sizes = BatchSizes([1, 2], 0.3)
    for kind in range(2 * KINDS):
        sizes.failed(kind, 2)
    assert sizes.of(2 * KINDS - 1) == (1,) and sizes.of(0) == (1, 2)


def rests(sizes):
    """Calls until a size of 2 may be run again."""
    calls = 0
    while sizes.of("image") == (1,):
        sizes.took("image", 1, 0.1)
        calls += 1
    return calls


def test_it_rests_twice_as_long_each_time_and_as_at_first_once_it_kept_the_limit():
    sizes, rested = BatchSizes([1, 2], 0.3), []
    for _ in range(3):
        slow(sizes, 2)
        rested.append(rests(sizes))
    assert rested == [REST, 2 * REST, 4 * REST]
    for _ in range(LOOKS):
        sizes.took("image", 2, 0.1)
    while sizes.of("image") == (1, 2):
        slow(sizes, 2, 1)
    assert rests(sizes) == REST
    for _ in range(30):
        sizes.failed("image", 2)
    assert rests(sizes) == LONGEST_REST
