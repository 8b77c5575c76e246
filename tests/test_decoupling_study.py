"""What notebook 01 rests on: correctness over a socket, runs of the strategies, an eavesdropper."""

from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from decoupled import node_here

from mllm_sched.experiments import break_even, decoupling_plots
from mllm_sched.experiments.break_even import full_size_configs
from mllm_sched.experiments.eavesdropper import eavesdropped, scores
from mllm_sched.experiments.strategy_costs import (
    HOLDS,
    Setting,
    cost_table,
    effects,
    effects_of,
    paper_table,
    region,
)
from mllm_sched.experiments.strategy_runs import (
    MODEL,
    RUNS,
    Bench,
    bench,
    by_features,
    correctness,
    exact_facts,
    facts,
    inputs,
    language_servers,
    residual_queue,
    strategy_runs,
    weight_sizes,
)
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.options import Slowdown

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def compared():
    with node_here("small-qwen2.5-vl") as address:
        return correctness({"small-qwen2.5-vl": SimpleNamespace(address=address)})


@pytest.fixture(scope="module")
def running():
    """What ``bench`` starts as processes."""
    slower = {"encoders": True, "slowdown": Slowdown(2.0, 2.0)}
    with (
        node_here(MODEL, encoders=True) as server,
        node_here(MODEL, **slower) as able,
        node_here(MODEL, language=False, **slower) as other,
    ):
        with EdgeClient(server) as client:
            card = client.describe()
        nodes = [SimpleNamespace(address=address) for address in (server, able, other)]
        yield Bench(nodes[0], nodes[1:], card.model, dict(card.markers))


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


def test_the_facts_are_those_of_the_comparison(compared):
    expected = [True, True, False, False, True]  # int8 changes most of an answer to an image here
    assert facts(compared).tolist() == expected


def test_each_half_weighs_less_than_the_whole_and_both_share_only_projectors():
    sizes = weight_sizes(full_size_configs()).set_index("model")
    shared = sizes["edge_gb"] + sizes["server_gb"] - sizes["whole_gb"]
    assert (sizes["edge_gb"] < 0.2 * sizes["whole_gb"]).all()
    assert (shared > 0).all() and (shared < 0.02 * sizes["whole_gb"]).all()


@pytest.mark.slow
def test_all_strategies_run_and_agree_where_nothing_is_rounded(running):
    items = inputs(280, 420, seconds=1.0)
    measured = strategy_runs(running, 50, delay_s=0.0, new_tokens=2, repeats=2, items=items)
    table = measured.set_index("strategy")
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
    told = exact_facts(measured)
    assert told["sent at most 2 % more"].all()
    assert told["tokens equal"].tolist() == [True, True, *["not asked"] * 3]
    axes = decoupling_plots.strategies({"Ours": (measured, "speeds scaled")})
    assert axes[0].get_title() == "Ours (speeds scaled)"
    assert effects(measured)["total_ms"].iloc[-1] == table["total_ms"].iloc[-1]


def test_a_missed_deadline_delays_the_next_request_on_the_same_connection(running):
    (row,) = residual_queue(running, [20]).itertuples()
    assert row.same_s > 2 * row.idle_s and row.same_s > 2 * row.new_s
    assert row.residual_bytes > 100_000
    ax = decoupling_plots.residual(residual_queue(running, [50]))
    assert ax.get_xlabel() == "link rate, Mbit/s"


def test_a_deadline_that_is_met_leaves_nothing_to_measure(running):
    with pytest.raises(RuntimeError, match="lower missed_share"):
        residual_queue(running, [100], missed_share=200)


@pytest.mark.slow
def test_a_bench_starts_its_nodes_and_reads_their_memory():
    with bench(encoders_slowdown=2.0, llm_slowdown=2.0, edges=2) as on:
        measured = strategy_runs(on, 50, delay_s=0.0, new_tokens=2, items=inputs(56, 84, 1.0))
        memory = on.memory()
    assert exact_facts(measured)["tokens equal"].tolist() == [True, True, *["not asked"] * 3]
    assert list(memory["node"]) == ["server", "edge 1", "edge 2"]
    assert memory["rss_mb"].gt(50).all()


@pytest.mark.slow
def test_a_language_server_is_started_for_every_model():
    with language_servers(["small-qwen2.5-vl"]) as servers:
        with EdgeClient(servers["small-qwen2.5-vl"].address) as client:
            assert client.describe().name == "small-qwen2.5-vl"


def test_raw_input_is_seen_as_it_is_and_features_give_much_of_it_away(seen):
    table = scores(seen).set_index("what")
    assert table.loc["raw input", ["correlation", "psnr_db"]].tolist() == [1, float("inf")]
    before, behind = (table.loc[f"features {side} the projector"] for side in ("before", "behind"))
    assert 1 > before["correlation"] > behind["correlation"] > 0.5
    assert before["psnr_db"] > behind["psnr_db"]
    axes = decoupling_plots.eavesdropper(seen)
    assert [ax.get_title().split("\n")[0] for ax in axes] == [each.what for each in seen]


def test_the_controls_are_a_coarse_picture_and_chance(seen):
    table = scores(seen).set_index("what")
    mosaic = table.loc["control: mosaic of 28 pixels"]
    chance = table.loc["control: another photograph", "correlation"]
    assert abs(chance) < 0.1
    before, behind = (
        table.loc[f"features {side} the projector", "correlation"] for side in ("before", "behind")
    )
    assert before > mosaic["correlation"] > behind > chance + 0.3
    tiles = {each.what: each.image for each in seen}["control: mosaic of 28 pixels"]
    assert len(np.unique(tiles[:28, :28].reshape(-1, 3), axis=0)) == 1


def test_a_model_whose_encoder_mixes_patches_is_refused():
    with pytest.raises(ValueError, match="small-llava mixes patches"):
        eavesdropped("small-llava")


RATES, GAINS = np.logspace(-1, 3, 41), np.logspace(-2, 2, 41)


def test_the_region_where_the_claim_holds_is_drawn_where_it_is():
    """Every point of the black line has the ratio that bounds the claim, by the prices."""
    table = region(Setting(), RATES, GAINS)
    axes = decoupling_plots.claim_regions({"Raw": (table, {"int8": 3.2})}, 10, "simulated")
    assert axes[0].get_title() == "Raw (simulated)"
    lines = {
        float(drawn.levels[0]): np.concatenate([path.vertices for path in drawn.get_paths()])
        for drawn in axes[0].collections
        if drawn.get_array() is not None and len(drawn.levels) == 1
    }
    assert set(lines) == {HOLDS, 1.0}
    for level, points in lines.items():
        assert len(points) > 20
        for mbit_s, gain in points[::5]:
            (found,) = region(Setting(), [mbit_s], [gain])["ratio"]
            assert found == pytest.approx(level, rel=0.05)


def test_a_region_without_a_winning_area_has_no_black_line():
    table = region(Setting(), RATES, [0.01, 0.1])
    axes = decoupling_plots.claim_regions({"Raw": (table, {})}, 10, "simulated")
    levels = [list(drawn.levels) for drawn in axes[0].collections if hasattr(drawn, "levels")]
    assert [HOLDS] not in levels


def test_a_break_even_is_marked_where_its_curve_crosses_1():
    axes = decoupling_plots.rate_curves(break_even.curves(np.logspace(-1, 3, 41)), "simulated")
    table = break_even.break_even_rates()
    found = table[(table["server_encodes"] == "float16") & (table["cut"] == "encoder")]
    for ax, item in zip(axes, ("image", "audio", "video"), strict=True):
        marks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
        rates = found.loc[found["item"] == item, "mbit_s"].dropna()
        assert sorted(marks) == pytest.approx(sorted(rates), rel=0.01)


def test_effects_are_drawn_as_shares_of_all_remote():
    tables = {"paper": (paper_table(), "published"), "ours": (cost_table(), "simulated")}
    axes = decoupling_plots.two_effects(effects_of(tables))
    assert [bar.get_width() for bar in axes[0].patches] == pytest.approx([1, 4000 / 7500, 1 / 3])
    assert len(axes[1].patches) == 4
