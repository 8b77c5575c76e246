"""Sizes of inputs and features, where features win, and over which link rates."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from mllm_sched.experiments import decoupling_plots
from mllm_sched.experiments.break_even import (
    RESIZED,
    BreakEven,
    break_even,
    break_even_rates,
    curves,
    feature_sizes,
    forms,
    gains,
    in_words,
    input_sizes,
    priced,
    psnr_db,
)
from mllm_sched.experiments.strategy_costs import Setting, modelled
from mllm_sched.pipeline.requests import WIRE_TYPES

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


def test_a_break_even_is_told_in_words():
    assert str(BreakEven("below", 80.4)) == "below 80 Mbit/s"
    assert str(BreakEven("never")) == "never"


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


def test_qwen_sees_a_1080p_image_and_720p_frames_without_making_them_smaller(sizes):
    rows = sizes[0].set_index(["item", "model", "cut", "wire"])["rows"]
    patches = round(1080 / 28) * 2 * round(1920 / 28) * 2
    assert patches == 78 * 138  # 12845056 pixels are allowed
    assert rows["image", "Qwen2.5-VL", "before projector", "int8"] == patches
    assert rows["image", "Qwen2.5-VL", "after projector", "int8"] == patches / 4
    frames = 4 / 2 * (2 * round(720 / 28)) * (2 * round(1280 / 28))  # two frames a patch
    assert rows["video", "Qwen2.5-Omni", "before projector", "int8"] == frames


def test_raw_sizes_are_arithmetic_and_compressed_ones_are_smaller(sizes):
    inputs = sizes[1].set_index(["item", "form"])
    assert inputs.loc[("image", "raw RGB"), "bytes"] == 1080 * 1920 * 3
    assert inputs.loc[("image", RESIZED), "bytes"] == 336 * 336 * 3
    assert inputs.loc[("audio", "PCM, 16 bit"), "bytes"] == 10 * 16000 * 2
    assert inputs.loc[("video", "raw RGB, frames seen"), "bytes"] == 4 * 720 * 1280 * 3
    for item, of_item in sizes[1][sizes[1]["form"] != RESIZED].groupby("item"):
        raw = of_item.loc[~of_item["compressed"], "bytes"].min()
        assert (of_item.loc[of_item["compressed"], "bytes"] < raw).all(), item


def test_what_is_lost_by_compression_is_told_where_it_can_be_seen(sizes):
    inputs = sizes[1]
    told = inputs["psnr_db"].notna()
    assert told.equals(inputs["compressed"] & (inputs["item"] != "audio"))
    assert inputs.loc[told, "psnr_db"].between(30, 45).all()
    found = inputs.set_index("form")["psnr_db"]
    assert found["JPEG, quality 95"] > found["JPEG, quality 75"]


def test_psnr_of_a_known_error():
    zeros = np.zeros((2, 3), np.uint8)
    assert psnr_db(zeros, zeros) == float("inf")
    assert psnr_db(zeros + 1, zeros) == 48.1  # 20 log10(255)


def test_gains_are_ratios_of_both_tables(sizes):
    features, inputs = sizes
    table = gains(features, inputs)
    row = table.loc[("image", "LLaVA-1.5", "before projector", "int8")]
    assert row["raw RGB"] == pytest.approx(1080 * 1920 * 3 / (576 * 1028))
    assert row[RESIZED] == pytest.approx(336 * 336 * 3 / (576 * 1028))
    assert np.isnan(row["PCM, 16 bit"])  # an image is no sound
    assert table[RESIZED].notna().sum() == 2 * len(WIRE_TYPES)  # LLaVA's alone
    assert len(table) == len(features)


@pytest.fixture(scope="module")
def link_rates():
    return break_even_rates()


def test_every_item_is_priced_with_its_own_encoder(link_rates):
    times = priced()
    assert list(times.index) == ["clip-vit-l14-336", "whisper-small", "videomae-base"]
    for item, encoder in zip(("image", "audio", "video"), times.index, strict=True):
        chosen = link_rates[link_rates["item"] == item]
        assert chosen["edge_ms"].unique() == times.loc[encoder, "edge, float32"]
        in_fp16 = chosen[chosen["server_encodes"] == "float16"]["server_ms"]
        assert in_fp16.unique() == times.loc[encoder, "server, float16"]
    assert (times["server, float32"] > 10 * times["server, float16"]).all()
    assert (times["server, float32"] < times["edge, float32"]).all()


def test_a_break_even_rate_is_where_hybrid_takes_as_long_as_all_remote(link_rates):
    """Found without the formula: the strategies of one item, priced at that rate."""
    items = {(modality, form): item for modality, form, item in forms()}
    found = link_rates.dropna(subset="mbit_s")
    for row in found.itertuples():
        setting = Setting(
            items=(items[row.item, row.form],),
            mbit_s=row.mbit_s,
            cut=row.cut,
            wire=row.wire,
            server_encodes=row.server_encodes,
        )
        hybrid, remote = (modelled(name, setting).total_s for name in ("hybrid", "all-remote"))
        assert hybrid == pytest.approx(remote)
        slower = modelled("hybrid", replace(setting, mbit_s=row.mbit_s / 2)).total_s
        assert slower < modelled("all-remote", replace(setting, mbit_s=row.mbit_s / 2)).total_s
    assert len(found) == 10


def test_audio_never_wins_and_image_and_video_win_against_what_is_raw(link_rates):
    keys = ["item", "form", "cut", "wire", "server_encodes"]
    wins = link_rates.set_index(keys)["wins"].sort_index()
    assert (wins["audio"] == "never").all()
    against = {form for _, form, *_ in wins[wins != "never"].index}
    assert against == {"raw, 1080p", "raw, 224 x 224"}
    video = wins["video", "raw, 224 x 224", "encoder"]
    assert (video["float16"] == "never").all() and (video["int8"] != "never").all()


def test_words_stand_in_the_order_of_items_and_cuts(link_rates):
    table = in_words(link_rates)
    assert table.index[0] == ("image", "raw, 1080p") and len(table) == 7
    assert table.columns[0] == ("before the projector", "float16")
    behind = table.loc[("image", "raw, 1080p"), ("behind it", "int8")]
    assert behind.startswith("below ") and behind.endswith(" Mbit/s")


def test_curves_cross_1_at_the_break_even_rates(link_rates):
    row = link_rates.query("item == 'video' and mbit_s.notna()").iloc[0]
    table = curves([0.99 * row["mbit_s"], 1.01 * row["mbit_s"]])
    ratios = table.query("item == 'video' and form == @row.form and wire == 'int8'")["ratio"]
    assert ratios.iloc[0] < 1 < ratios.iloc[1]
    assert (table.loc[table["item"] == "audio", "ratio"] > 1).all()


def test_an_even_match_is_not_rounded_up(sizes):
    table = gains(*sizes)
    axes = decoupling_plots.gain_maps(table)
    told = [text.get_text() for text in axes[1].texts]
    assert "0.997" in told and "1" not in told
    assert "inputs measured, features counted" in axes[0].figure.get_suptitle()
    plt.close(axes[0].figure)
