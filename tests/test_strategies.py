"""The three strategies over real sockets and a real link."""

import time

import numpy as np
import pytest
from decoupled import OMNI, again, halves, monolithic, node_here, request
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.node_errors import DeadlineMissed, NodeUnreachable
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.strategies import STRATEGIES, run, spread
from mllm_sched.pipeline.wire import wire_bytes


@pytest.fixture(scope="module")
def server():
    with node_here(OMNI, encoders=True) as address:
        yield address


@pytest.fixture(scope="module")
def edges():
    """An edge device that could do all alone, and one with encoders only."""
    with (
        node_here(OMNI, encoders=True, encoders_slowdown=5) as able,
        node_here(OMNI, encoders=True, language=False, encoders_slowdown=5) as other,
    ):
        yield [able, other]


@pytest.fixture
def link(server):
    with Link(server, up_mbit_s=20, down_mbit_s=20, delay_s=0.005) as opened:
        yield opened


def run_alone(strategy, asked, link, edges):
    """Once the farewell of the connection before has crossed the link."""
    passed = None
    while passed != link.passed():
        passed = link.passed()
        time.sleep(0.1)
    return run(strategy, asked, link, edges)


def test_all_strategies_give_the_tokens_of_the_whole_model(link, edges):
    asked = request(OMNI)
    _, tokens = monolithic(OMNI, asked)
    for strategy in STRATEGIES:
        for used in (edges[:1], edges):
            outcome = run(strategy, again(asked), link, used, wire="float32")
            assert (outcome.strategy, outcome.tokens) == (strategy, tokens)


def test_times_add_up_and_bytes_cross_the_link_only_where_they_should(link, edges):
    asked = request(OMNI)
    run("all-remote", asked, link, [])  # the first request warms up
    outcomes = {name: run_alone(name, again(asked), link, edges[:1]) for name in STRATEGIES}
    for outcome in outcomes.values():
        parts = (outcome.transmission_s, outcome.encode_s, outcome.llm_s, outcome.wait_s)
        assert sum(parts) == pytest.approx(outcome.total_s) and min(parts) >= 0
    edge, remote, hybrid = (outcomes[name] for name in STRATEGIES)
    assert edge.up_bytes == edge.down_bytes == 0
    assert asked.bytes < remote.up_bytes < 1.1 * asked.bytes
    assert 0 < hybrid.up_bytes != remote.up_bytes
    # 5 ms there, 5 ms back, and the bytes at 20 Mbit/s
    for outcome in (remote, hybrid):
        assert outcome.transmission_s > 0.01 + 8 * (outcome.up_bytes - 40_000) / 20e6
    assert edge.encode_s > 2 * remote.encode_s  # a slower device


@pytest.mark.parametrize("cut", ["encoder", "projector"])
def test_cut_and_wire_type_change_what_is_sent_by_as_much_as_they_should(link, edges, cut):
    asked = request(OMNI, ("image",))
    shape = halves(OMNI)[0].encode(asked.items[0], cut).features.shape
    wide, narrow = (
        run("hybrid", again(asked), link, edges[:1], cut=cut, wire=wire).up_bytes
        for wire in ("float32", "int8")
    )
    saved = wire_bytes(*shape, "float32") - wire_bytes(*shape, "int8")
    assert wide - narrow == pytest.approx(saved, abs=400)  # headers differ a little


def test_encoders_of_one_request_run_in_parallel_over_several_edge_devices(link, edges):
    asked = request(OMNI)
    one, both = (
        [run("hybrid", again(asked), link, used) for _ in range(2)] for used in (edges[:1], edges)
    )
    assert one[0].tokens == both[0].tokens
    # The quickest of several: other work on the machine only ever adds.
    assert min(each.encode_s for each in both) < min(each.encode_s for each in one)


def test_a_strategy_that_cannot_run_says_why(link, edges):
    asked = request(OMNI)
    with pytest.raises(ValueError, match="expected one of all-edge, all-remote, hybrid"):
        run("all-cloud", asked, link, edges)
    with pytest.raises(ValueError, match="hybrid needs the address of an edge device"):
        run("hybrid", asked, link, [])


def test_a_link_lost_for_a_time_delays_an_answer_and_one_lost_for_long_misses_the_deadline(
    link, edges
):
    asked = request(OMNI, ("image",))
    tokens = run("hybrid", again(asked), link, edges).tokens
    link.cut(1.0)
    begun = time.monotonic()
    assert run("hybrid", again(asked), link, edges, deadline_s=20).tokens == tokens
    assert time.monotonic() - begun > 0.9
    link.cut(30.0)
    begun = time.monotonic()
    with pytest.raises((DeadlineMissed, NodeUnreachable)):
        run("all-remote", again(asked), link, [], deadline_s=1.0)
    assert time.monotonic() - begun < 10
    link.cut(0.0)
    assert run("hybrid", again(asked), link, edges, deadline_s=20).tokens == tokens


SIZES = st.lists(st.integers(1, 10**6), max_size=12)


@given(SIZES, st.integers(1, 5))
def test_every_item_goes_to_one_device_and_none_is_idle_beside_a_full_one(sizes, devices):
    items = [Item("audio", np.zeros(size, np.int16)) for size in sizes]
    shares = spread(items, devices)
    assert sorted(index for share in shares for index in share) == list(range(len(items)))
    assert all(share == sorted(share) for share in shares)
    if len(items) >= devices:
        assert all(shares)
    held = [sum(sizes[index] for index in share) for share in shares]
    assert max(held) - min(held) <= max(sizes, default=0)
