"""The strategies priced for hardware that is not here, and what their order hangs on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.experiments.strategy_costs import (
    A100,
    HOLDS,
    INPUTS,
    ITEMS,
    ORIN,
    STRATEGIES,
    Language,
    Setting,
    holding_rates,
    items_as,
    modelled,
    ratio,
    region,
    server_s,
    where_it_holds,
)


def test_all_edge_sends_nothing_and_hybrid_sends_features():
    edge, remote, hybrid = (modelled(name) for name in STRATEGIES)
    assert edge.up_bytes == edge.transmission_s == 0
    assert remote.up_bytes == 1080 * 1920 * 3 + 30 * 16000 * 2 + 16 * 224 * 224 * 3
    assert hybrid.up_bytes == 2 * (576 * 1024 + 1500 * 768 + 1568 * 768)
    assert edge.llm_s > remote.llm_s == hybrid.llm_s
    assert edge.encode_s == hybrid.encode_s > remote.encode_s


def test_behind_the_projector_every_row_is_as_wide_as_a_token():
    hybrid = modelled("hybrid", Setting(cut="projector", wire="int8"))
    assert hybrid.up_bytes == (576 + 1500 + 1568) * (4096 + 4)
    assert hybrid.llm_s == modelled("hybrid").llm_s


@given(st.floats(0.1, 1e4), st.floats(1.1, 10))
def test_a_faster_link_helps_whoever_sends(mbit_s, times):
    for strategy in STRATEGIES[1:]:
        slow = modelled(strategy, Setting(mbit_s=mbit_s))
        fast = modelled(strategy, Setting(mbit_s=mbit_s * times))
        assert fast.total_s < slow.total_s
        assert (fast.encode_s, fast.llm_s) == (slow.encode_s, slow.llm_s)


def test_more_edges_and_less_power_do_what_they_should():
    one, three = (modelled("hybrid", Setting(edges=count)) for count in (1, 3))
    assert three.encode_s < one.encode_s and three.transmission_s == one.transmission_s
    assert modelled("hybrid", Setting(edges=9)).encode_s == three.encode_s  # three encoders
    assert modelled("hybrid", Setting(power_w=15)).encode_s > one.encode_s


def test_a_server_that_encodes_in_float32_takes_longer_to_encode():
    clip = server_s(Setting(server_encodes="float32"), ITEMS[0])
    assert clip == pytest.approx(381918216192 / (19.5e12 * 0.4))
    assert clip > 10 * server_s(Setting(), ITEMS[0])


def test_the_llm_is_bound_by_arithmetic_in_the_prompt_and_by_memory_in_the_answer():
    short, long = Language(answer_tokens=1), Language(answer_tokens=101)
    token_s = (long.seconds(A100, 500) - short.seconds(A100, 500)) / 100
    assert token_s == pytest.approx(2 * 6.74e9 / (1935e9 * 0.7))
    assert short.seconds(A100, 5000) == pytest.approx(2 * 6.74e9 * 5000 / (312e12 * 0.4))
    assert short.seconds(ORIN, 500) > short.seconds(A100, 500)


@pytest.mark.parametrize(
    "setting", [{"mbit_s": 0}, {"edges": 0}, {"cut": "input"}, {"server_encodes": "int8"}]
)
def test_an_impossible_setting_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Setting(**setting)


def test_the_ratio_is_taken_to_the_quicker_of_the_others():
    for mbit_s, quicker in ((1.0, "all-edge"), (100.0, "all-remote")):
        setting = Setting(mbit_s=mbit_s)
        others = {name: modelled(name, setting).total_s for name in STRATEGIES[:2]}
        assert min(others, key=others.get) == quicker
        assert ratio(setting) == modelled("hybrid", setting).total_s / others[quicker]


def test_between_the_rates_the_claim_holds_and_beyond_it_does_not():
    setting = Setting(wire="int8")
    low, high = holding_rates(setting)
    assert low < 10 < high
    for end, inward in ((low, 1.001), (high, 1 / 1.001)):
        assert ratio(replace(setting, mbit_s=end)) == pytest.approx(HOLDS, abs=1e-6)
        assert ratio(replace(setting, mbit_s=end * inward)) < HOLDS
        assert ratio(replace(setting, mbit_s=end / inward)) > HOLDS
    for mbit_s in range(1, 200, 7):
        assert (ratio(replace(setting, mbit_s=mbit_s)) <= HOLDS) == (low <= mbit_s <= high)


def test_lengths_of_answers_for_which_the_claim_holds_are_an_interval():
    found = where_it_holds().set_index("wire")
    assert found.loc["float16"].isna().all()
    assert found.loc["int8", ["from_mbit_s", "to_mbit_s"]].tolist() == [
        *holding_rates(Setting(wire="int8"))
    ]
    first, last = found.loc["int8", ["from_tokens", "to_tokens"]]
    for tokens in (first - 1, first, last, last + 1):
        held = ratio(Setting(wire="int8", language=Language(answer_tokens=tokens))) <= HOLDS
        assert held == (first <= tokens <= last)


@pytest.mark.parametrize("form", INPUTS)
@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_the_region_agrees_with_the_strategies_it_is_made_of(form, wire):
    items, rates = items_as(form), np.array([1.0, 10.0, 100.0])
    setting = Setting(items=items, wire=wire)
    gain = modelled("all-remote", setting).up_bytes / modelled("hybrid", setting).up_bytes
    found = region(setting, rates, np.array([gain]))
    assert found[0] == pytest.approx([ratio(replace(setting, mbit_s=rate)) for rate in rates])
