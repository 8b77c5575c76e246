"""Sizes of inputs and features, where features win, and over which link rates."""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.experiments.break_even import (
    RESIZED,
    break_even,
    break_even_rates,
    feature_sizes,
    forms,
    input_sizes,
    psnr_db,
    weight_sizes,
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
        where, rate = break_even(features, raw, edge_s, server_s)
        assert isnan(rate) == (where in ("always", "never"))
        below = where == "always" if isnan(rate) else (mbit_s < rate) == (where == "below")
        assert below == (ours_s < theirs_s)


def test_equal_things_never_win():
    assert break_even(5.0, 5.0, 1.0, 1.0)[0] == "never"


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


@pytest.fixture(scope="module")
def link_rates():
    return break_even_rates()


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
    assert wins["image", "raw, 1080p", "encoder", "int8", "float16"] == "below 635 Mbit/s"


def test_each_half_weighs_less_than_the_whole_and_both_share_only_projectors():
    sizes = weight_sizes().set_index("model")
    shared = sizes["edge_gb"] + sizes["server_gb"] - sizes["whole_gb"]
    assert (sizes["edge_gb"] < 0.2 * sizes["whole_gb"]).all()
    assert (shared > 0).all() and (shared < 0.02 * sizes["whole_gb"]).all()
