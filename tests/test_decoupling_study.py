"""What notebook 01 rests on: correctness over a socket, runs of the strategies, an eavesdropper."""

import pytest
from decoupled import node_here

from mllm_sched.experiments.eavesdropper import eavesdropped
from mllm_sched.experiments.strategy_runs import (
    MODEL,
    RUNS,
    Bench,
    correctness,
    residual_queue,
    run_strategies,
)
from mllm_sched.pipeline import media
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.requests import Item


@pytest.fixture(scope="module")
def compared():
    with node_here("small-qwen2.5-vl") as address:
        return correctness({"small-qwen2.5-vl": address})


@pytest.fixture(scope="module")
def running():
    """What ``bench`` starts as processes."""
    slower = {"encoders": True, "encoders_slowdown": 2.0, "llm_slowdown": 2.0}
    with (
        node_here(MODEL, encoders=True) as server,
        node_here(MODEL, **slower) as able,
        node_here(MODEL, language=False, **slower) as other,
    ):
        with EdgeClient(server) as client:
            card = client.describe()
        yield Bench(server, [able, other], card.model, card.markers)


def test_correctness_covers_every_item_cut_and_wire_type(compared):
    assert set(compared["items"]) == {"image", "video"}
    assert set(compared["cut"]) == {"encoder", "projector"}
    assert not compared.duplicated(["items", "cut", "features"]).any()
    assert len(compared) == 2 * 2 * 6


def test_float32_is_bitwise_equal_and_what_was_tampered_with_is_noticed(compared):
    rows = compared.set_index("features")
    assert rows.loc["float32", "bitwise"].all()
    assert (rows.loc["float32", ["max_delta", "tokens_equal"]] == [0, 1]).all(axis=None)
    for how in ("zeroed", "rows reversed"):
        assert not rows.loc[how, "bitwise"].any()
        assert rows.loc[how, "max_delta"].min() > 10 * rows.loc["int8", "max_delta"].max()
        assert rows.loc[how, "tokens_equal"].mean() < 1


def test_coarser_wire_types_change_logits_more(compared):
    largest = compared.groupby("features")["max_delta"].max()
    order = largest[["float32", "float16", "bfloat16", "int8"]]
    assert order.is_monotonic_increasing and order.is_unique


@pytest.mark.slow
def test_all_strategies_run_and_agree_where_nothing_is_rounded(running):
    items = [
        Item("image", media.photograph("china", 280, 420)),
        Item("video", media.panned_video("flower", 1.0, 2.0, 224, 280), 2.0),
        Item("audio", media.speech_like(1.0)),
    ]
    table = run_strategies(running, items, 2, 2, mbit_s=50).set_index("strategy")
    assert list(table.index) == [name for name, *_ in RUNS]
    assert table.loc[["all-edge", "all-remote"], "tokens_equal"].eq(1).all()
    stages = table[["transmission_ms", "encode_ms", "llm_ms"]]
    assert (stages > 0).all(axis=None) and (stages.max(axis=1) < table["total_ms"]).all()
    assert (table["spread_ms"] > 0).all()
    sent, payload = table["up_bytes"], table["payload_bytes"]
    raw = sum(item.bytes for item in items)
    assert payload["all-edge"] == 0 and payload["all-remote"] == raw
    assert payload["hybrid, int8"] == payload["hybrid, int8, 2 edges"]
    assert payload["hybrid, int8"] < 0.51 * payload["hybrid, float16"]
    assert (sent.iloc[1:] > payload.iloc[1:]).all() and sent["all-edge"] < 0.01 * raw
    assert (sent - payload <= 0.02 * payload).all()


def test_a_missed_deadline_delays_the_next_request_on_the_same_connection(running):
    (row,) = residual_queue(running, [20]).itertuples()
    assert row.same_s > 2 * row.idle_s and row.same_s > 2 * row.new_s
    assert row.residual_bytes > 100_000


def test_a_model_whose_encoder_mixes_patches_is_refused():
    with pytest.raises(ValueError, match="small-llava mixes patches"):
        eavesdropped("small-llava")
