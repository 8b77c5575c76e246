"""Sizes of inputs and features, and where features win."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.pipeline.wire_types import WIRE_TYPES
from mllm_sched.study.break_even import (
    BreakEven,
    break_even,
    feature_sizes,
    gains,
    input_sizes,
    rates,
)

SIZES = st.floats(0, 1e9)
SECONDS = st.floats(0, 100)
RATES = st.floats(0.01, 1e5)


@given(SIZES, SIZES, SECONDS, SECONDS, RATES)
def test_where_features_win_is_where_they_arrive_sooner(features, raw, edge_s, server_s, mbit_s):
    bits_s = mbit_s * 1e6
    ours_s, theirs_s = 8 * features / bits_s + edge_s, 8 * raw / bits_s + server_s
    if abs(ours_s - theirs_s) > 1e-9 * (ours_s + theirs_s):
        found = break_even(features, raw, edge_s, server_s)
        assert found.wins(mbit_s) == (ours_s < theirs_s)


@given(SIZES, SIZES, SECONDS, SECONDS, RATES)
def test_both_sides_never_win_at_once(features, raw, edge_s, server_s, mbit_s):
    one = break_even(features, raw, edge_s, server_s).wins(mbit_s)
    other = break_even(raw, features, server_s, edge_s).wins(mbit_s)
    assert not (one and other)


def test_equal_things_never_win():
    assert break_even(5.0, 5.0, 1.0, 1.0) == BreakEven("never")


@pytest.mark.parametrize("name", ["feature_bytes", "input_bytes", "edge_s", "server_s"])
def test_a_negative_or_infinite_value_is_named(name):
    good = {"feature_bytes": 1.0, "input_bytes": 2.0, "edge_s": 1.0, "server_s": 0.5}
    for value in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=name):
            break_even(**{**good, name: value})


@pytest.fixture(scope="module")
def sizes():
    return feature_sizes(), input_sizes()


def test_sizes_of_features_follow_from_published_shapes(sizes):
    features = sizes[0].set_index(["item", "model", "cut", "wire"])["bytes"]
    assert features["image", "LLaVA-1.5", "after projector", "float16"] == 576 * 4096 * 2
    assert features["image", "LLaVA-1.5", "before projector", "int8"] == 576 * (1024 + 4)
    assert features["image", "BLIP-2", "pooled", "float16"] == 32 * 768 * 2
    voxtral = sizes[0].query("model == 'Voxtral' and cut == 'after projector'")
    assert voxtral["rows"].unique() == 375  # 10 s are padded to 30; 50 frames a second, 4 a token
    assert set(sizes[0]["wire"]) == set(WIRE_TYPES)
    assert (sizes[0]["bytes"] > 0).all()


def test_raw_sizes_are_arithmetic_and_compressed_ones_are_smaller(sizes):
    inputs = sizes[1].set_index(["item", "form"])
    assert inputs.loc[("image", "raw RGB"), "bytes"] == 1080 * 1920 * 3
    assert inputs.loc[("audio", "PCM, 16 bit"), "bytes"] == 10 * 16000 * 2
    for item, forms in sizes[1].groupby("item"):
        raw = forms.loc[~forms["compressed"], "bytes"].min()
        assert (forms.loc[forms["compressed"], "bytes"] < raw).all(), item


def test_gains_are_ratios_of_both_tables(sizes):
    features, inputs = sizes
    table = gains(features, inputs)
    row = table.loc[("image", "LLaVA-1.5", "before projector", "int8")]
    assert row["raw RGB"] == pytest.approx(1080 * 1920 * 3 / (576 * 1028))
    assert np.isnan(row["PCM, 16 bit"])  # an image is no sound
    assert len(table) == len(features)


def test_rates_say_in_words_where_features_win(sizes):
    features = sizes[0].query("item == 'image'")
    table = rates(features, sizes[1].query("item == 'image'"), edge_s=0.1, server_s=0.01)
    row = table.loc[("LLaVA-1.5", "before projector", "int8")]
    saved_bits = 8 * (1080 * 1920 * 3 - 576 * 1028)
    assert row["raw RGB"] == f"below {saved_bits / 0.09 / 1e6:.0f} Mbit/s"
    assert row["JPEG, quality 75"] == "never"
    quicker = rates(features, sizes[1].query("item == 'image'"), edge_s=0.01, server_s=0.01)
    assert quicker.loc[("BLIP-2", "pooled", "int8"), "raw RGB"] == "always"
