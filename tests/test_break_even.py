"""Sizes of inputs and features, where features win, and over which link rates."""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.experiments.break_even import (
    break_even,
    break_even_rates,
    feature_sizes,
    forms,
    psnr_db,
)
from mllm_sched.experiments.strategy_costs import Setting, modelled

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
    return feature_sizes().set_index(["item", "model", "cut", "wire"])


def test_sizes_of_features_follow_from_published_shapes(sizes):
    features = sizes["bytes"]
    assert features["image", "LLaVA-1.5", "after projector", "float16"] == 576 * 4096 * 2
    assert features["image", "LLaVA-1.5", "before projector", "int8"] == 576 * (1024 + 4)
    assert features["image", "BLIP-2", "pooled", "float16"] == 32 * 768 * 2
    voxtral = sizes.query("model == 'Voxtral' and cut == 'after projector'")
    assert voxtral["rows"].unique() == 375  # 10 s are padded to 30; 50 frames a second, 4 a token


def test_qwen_sees_a_1080p_image_and_720p_frames_without_making_them_smaller(sizes):
    rows = sizes["rows"]
    patches = round(1080 / 28) * 2 * round(1920 / 28) * 2
    assert patches == 78 * 138  # 12845056 pixels are allowed
    assert rows["image", "Qwen2.5-VL", "before projector", "int8"] == patches
    assert rows["image", "Qwen2.5-VL", "after projector", "int8"] == patches / 4
    frames = 4 / 2 * (2 * round(720 / 28)) * (2 * round(1280 / 28))  # two frames a patch
    assert rows["video", "Qwen2.5-Omni", "before projector", "int8"] == frames


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
