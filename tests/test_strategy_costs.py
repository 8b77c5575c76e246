"""The strategies priced for hardware that is not here."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.study.strategy_costs import (
    A100,
    ORIN,
    Language,
    Setting,
    cost_table,
    effects,
    implied_mbit_s,
    modelled,
    paper_table,
    region,
    savings,
)

STRATEGIES = ("all-edge", "all-remote", "hybrid")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_times_add_up(strategy):
    cost = modelled(strategy)
    assert cost.total_s == pytest.approx(cost.transmission_s + cost.encode_s + cost.llm_s)


def test_all_edge_sends_nothing_and_hybrid_sends_features():
    edge, remote, hybrid = (modelled(name) for name in STRATEGIES)
    assert edge.up_bytes == edge.transmission_s == 0
    assert remote.up_bytes == 1080 * 1920 * 3 + 30 * 16000 * 2 + 16 * 224 * 224 * 3
    assert hybrid.up_bytes == 2 * (576 * 1024 + 1500 * 768 + 1568 * 768)
    assert edge.llm_s > remote.llm_s == hybrid.llm_s
    assert edge.encode_s == hybrid.encode_s > remote.encode_s


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


def test_the_llm_is_bound_by_arithmetic_in_the_prompt_and_by_memory_in_the_answer():
    short, long = Language(answer_tokens=1), Language(answer_tokens=101)
    token_s = (long.seconds(A100, 500) - short.seconds(A100, 500)) / 100
    assert token_s == pytest.approx(2 * 6.74e9 / (1935e9 * 0.7))
    assert short.seconds(A100, 5000) == pytest.approx(2 * 6.74e9 * 5000 / (312e12 * 0.4))
    assert short.seconds(ORIN, 500) > short.seconds(A100, 500)


@pytest.mark.parametrize("setting", [{"mbit_s": 0}, {"edges": 0}])
def test_an_impossible_setting_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Setting(**setting)
    with pytest.raises(ValueError, match="expected all-edge, all-remote or hybrid"):
        modelled("all-cloud")


def test_the_papers_table_adds_up_and_splits_into_its_two_effects():
    table = paper_table()
    parts = table[["transmission_ms", "encode_ms", "llm_ms"]].sum(axis=1)
    assert (parts == table["total_ms"]).all()
    assert effects(table, 2000)["total_ms"].tolist() == [7500, 4000, 2500]


def test_effects_of_the_model_end_where_its_table_does():
    table = cost_table(edges=3)
    totals = table.set_index("strategy")["total_ms"]
    steps = effects(table, modelled("hybrid").encode_s * 1000, "hybrid, int8, 3 edges")
    ends = ["all-remote", "hybrid, int8", "hybrid, int8, 3 edges"]
    assert steps["total_ms"].tolist() == pytest.approx(totals[ends].tolist())
    assert steps["total_ms"].is_monotonic_decreasing


def test_savings_are_taken_against_the_quicker_of_the_others():
    table = cost_table()
    totals = table.set_index("strategy")["total_ms"]
    found = savings(table).set_index("key")["value"]
    assert found["int8 against raw"] == pytest.approx(
        1 - totals["hybrid, int8"] / min(totals["all-edge"], totals["all-remote"])
    )
    assert totals["all-remote, compressed"] < totals["all-remote"]
    assert found["int8 against compressed"] < found["float16 against raw"]


def test_the_region_agrees_with_the_strategies_it_is_made_of():
    setting = Setting(wire="int8")
    sent = sum(item.input_bytes for item in setting.items)
    gain = sent / modelled("hybrid", setting).up_bytes
    saving = region(setting, [10.0], [gain])["saving"].item()
    others = [modelled(name, setting).total_s for name in STRATEGIES[:2]]
    assert saving == pytest.approx(1 - modelled("hybrid", setting).total_s / min(others))
    grid = region(setting, [0.1, 1e4], [0.01, 100])
    assert grid["saving"].max() < 1 and grid["saving"].min() < 0


def test_the_papers_rate_follows_from_a_photograph():
    assert implied_mbit_s(5500, 1080 * 1920 * 3) == pytest.approx(9.05, abs=0.01)


def test_the_wire_type_is_priced():
    bytes_of = {
        wire: modelled("hybrid", replace(Setting(), wire=wire)).up_bytes
        for wire in ("float32", "float16", "int8")
    }
    assert bytes_of["float32"] == 2 * bytes_of["float16"] > 3.9 * bytes_of["int8"] / 2
