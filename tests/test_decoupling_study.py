"""What notebook 01 rests on: correctness over a socket, runs of the strategies, an eavesdropper."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mllm_sched.pipeline import media
from mllm_sched.study import decoupling_plots, strategy_costs
from mllm_sched.study.break_even import full_size_configs
from mllm_sched.study.correctness import (
    by_features,
    correctness,
    language_servers,
    weight_sizes,
)
from mllm_sched.study.eavesdropper import eavesdropped, scores
from mllm_sched.study.strategy_runs import RUNS, bench, inputs, residual_queue, strategy_runs

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def compared():
    with language_servers(["small-qwen2.5-vl"]) as servers:
        return correctness(servers)


@pytest.fixture(scope="module")
def running():
    with bench(encoders_slowdown=2.0, llm_slowdown=2.0, edges=2) as on:
        yield on


@pytest.fixture(scope="module")
def seen():
    return eavesdropped("small-qwen2.5-vl")


def test_correctness_covers_every_item_cut_and_wire_type(compared):
    assert set(compared["items"]) == {"image", "video"}
    assert set(compared["cut"]) == {"encoder", "projector"}
    assert not compared.duplicated(["items", "cut", "features"]).any()
    assert len(compared) == 2 * 2 * 6


def test_float32_is_bitwise_equal_and_what_was_tampered_with_is_noticed(compared):
    found = by_features(compared)
    assert found.loc["float32", "all bitwise equal"]
    assert found.loc["float32", "largest difference"] == 0
    for how in ("zeroed", "rows reversed"):
        assert not found.loc[how, "any bitwise equal"]
        assert found.loc[how, "least difference"] > 10 * found.loc["int8", "largest difference"]
        assert found.loc[how, "tokens equal, mean"] < 1


def test_coarser_wire_types_change_logits_more(compared):
    largest = by_features(compared)["largest difference"]
    order = largest[["float32", "float16", "bfloat16", "int8"]]
    assert order.is_monotonic_increasing and order.is_unique


def test_each_half_weighs_less_than_the_whole_and_both_share_only_projectors():
    sizes = weight_sizes(full_size_configs()).set_index("model")
    shared = sizes["edge_gb"] + sizes["server_gb"] - sizes["whole_gb"]
    assert (sizes["edge_gb"] < 0.2 * sizes["whole_gb"]).all()
    assert (shared > 0).all() and (shared < 0.02 * sizes["whole_gb"]).all()


def test_all_strategies_run_and_agree_where_nothing_is_rounded(running):
    table = strategy_runs(running, mbit_s=50, delay_s=0.0, new_tokens=2).set_index("strategy")
    assert list(table.index) == [name for name, *_ in RUNS]
    assert table.loc[["all-edge", "all-remote"], "tokens_equal"].eq(1).all()
    stages = table[["transmission_ms", "encode_ms", "llm_ms"]]
    assert (stages > 0).all(axis=None) and (stages.max(axis=1) < table["total_ms"]).all()
    sent = table["up_bytes"]
    raw = sum(item.bytes for item in inputs())
    assert sent["all-edge"] < 0.01 * raw <= 0.01 * sent["all-remote"]
    assert sent["hybrid, 3 edges, int8"] < 0.6 * sent["hybrid"] < 0.6 * raw
    axes = decoupling_plots.strategies({"Ours": (table.reset_index(), "measured")})
    assert "(measured)" in axes[0].get_title()


def test_a_missed_deadline_delays_the_next_request_on_the_same_connection(running):
    (row,) = residual_queue(running, [20]).itertuples()
    assert row.same_s > 2 * row.idle_s and row.same_s > 2 * row.new_s
    assert row.residual_bytes > 100_000
    ax = decoupling_plots.residual(residual_queue(running, [50]))
    assert ax.get_xlabel() == "link rate, Mbit/s"


def test_a_deadline_that_is_met_leaves_nothing_to_measure(running):
    with pytest.raises(RuntimeError, match="lower missed_share"):
        residual_queue(running, [100], missed_share=20)


def test_memory_of_every_node_is_read(running):
    memory = running.memory()
    assert list(memory["node"]) == ["server", "edge 1", "edge 2"]
    assert memory["rss_mb"].gt(50).all()


def test_raw_input_is_seen_as_it_is_and_features_give_much_of_it_away(seen):
    table = {what: (correlation, psnr) for what, correlation, psnr, _ in scores(seen)}
    assert table["raw input"] == (pytest.approx(1), float("inf"))
    before, behind = table["features before the projector"], table["features behind the projector"]
    assert 1 > before[0] > behind[0] > 0.5
    assert before[1] > behind[1]
    axes = decoupling_plots.eavesdropper(seen)
    assert [ax.get_title().split("\n")[0] for ax in axes] == [each.what for each in seen]


def test_any_other_photograph_says_less_of_the_one_on_the_link(seen):
    original = seen[0].image
    other = media.photograph("flower", *original.shape[:2])
    chance = np.corrcoef(original.ravel().astype(float), other.ravel().astype(float))[0, 1]
    assert seen[2].correlation > 0.3 + chance


def test_a_model_whose_encoder_mixes_patches_is_refused():
    with pytest.raises(ValueError, match="small-llava mixes patches"):
        eavesdropped("small-llava")


def test_the_region_where_the_claim_holds_is_drawn_where_it_is():
    table = strategy_costs.region(strategy_costs.Setting(), [1.0, 10.0, 100.0], [0.1, 1.0, 10.0])
    axes = decoupling_plots.claim_regions({"All Remote raw": (table, {"JPEG": 0.3})}, "modelled")
    assert axes[0].get_xscale() == "log" and "(modelled)" in axes[0].get_title()
