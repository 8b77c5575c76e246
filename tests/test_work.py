import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.encoders.count_work import DLA_LOADABLES, count_work, encoder_work, write_work_table
from mllm_sched.pipeline.encoders import ENCODERS, build_encoder, encoder_spec
from mllm_sched.pipeline.work import WORK_TABLE, Work, encoder_modalities, read_work

FULL_SIZE = [name for name in ENCODERS if not name.startswith("tiny-")]


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def count(model, *shape):
    return count_work(model.eval().to("meta"), torch.empty(shape, device="meta"))


@pytest.mark.slow
def test_the_committed_table_is_what_counting_gives(tmp_path):
    assert write_work_table(tmp_path / "work.csv").read_text() == WORK_TABLE.read_text()


def test_the_table_holds_every_full_size_encoder_with_its_modality():
    assert dict(encoder_modalities()) == {name: encoder_spec(name).modality for name in FULL_SIZE}
    assert set(FULL_SIZE) < set(read_work())


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_flops_agree_with_torch_which_counts_the_parts(name):
    with torch.device("meta"):
        model = build_encoder(name).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *encoder_spec(name).input_shape))
    assert read_work()[name].flops == counter.get_total_flops()


def test_clip_l14_has_the_published_size():
    # 304 million parameters (arXiv 2103.00020); 577 tokens x 2 x 302 M in linear layers, and more
    work = read_work()["clip-vit-l14-336"]
    assert work.parameters == pytest.approx(304e6, rel=0.005)
    assert work.flops == pytest.approx(2 * 577 * 302e6, rel=0.15)


@pytest.mark.parametrize("name", ["clip-vit-b32", "resnet-50"])
def test_committed_counts_scaled_are_those_of_a_batch(name):
    scaled, counted = read_work()[name].scaled(4), encoder_work(name, batch=4)
    assert scaled.flops == counted.flops and scaled.kernels == counted.kernels
    assert scaled.bytes == pytest.approx(counted.bytes, rel=0.01)
    assert scaled.dla_bytes == pytest.approx(counted.dla_bytes, rel=0.01)


def test_a_linear_layer_by_hand():
    work = count(nn.Linear(10, 20), 3, 10)
    assert work.flops == 2 * 3 * 10 * 20
    assert work.bytes == 4 * (3 * 10 + 10 * 20 + 20 + 3 * 20)
    assert (work.kernels, work.parameters, work.dla_segments) == (1, 220, 1)


def test_a_convolution_by_hand():
    work = count(nn.Conv2d(3, 8, 3, padding=1, groups=1), 1, 3, 5, 7)
    assert work.flops == 2 * 8 * 3 * 9 * 5 * 7
    assert work.bytes == 4 * (3 * 35 + 8 * 27 + 8 + 8 * 35)


def test_views_are_free_and_copies_are_not():
    views = Call(lambda x: x.flatten(1).view(2, 4, 3).transpose(1, 2).unsqueeze(0))
    assert count(views, 2, 12) == Work(flops=0, bytes=0, kernels=0, parameters=0)
    assert count(Call(lambda x: x.transpose(0, 1).contiguous()), 2, 12).bytes == 2 * 4 * 24


@pytest.mark.parametrize(
    "product", [lambda x: x @ x.transpose(-1, -2), lambda x: nn.functional.linear(x, x)]
)
def test_a_product_of_two_activations_is_counted_but_not_for_the_dla(product):
    work = count(Call(product), 3, 5)
    assert (work.flops, work.dla_segments) == (2 * 3 * 3 * 5, 0)


def test_views_do_not_break_a_segment_and_what_the_dla_lacks_does():
    joined = nn.Sequential(nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.ReLU())
    broken = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU())
    assert count(joined, 1, 8).dla_segments == 1
    assert count(broken, 1, 8).dla_segments == 2
    assert count(broken, 1, 8).dla_kernels == 3


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Softmax(-1), nn.LayerNorm(8), nn.Hardswish()])
def test_the_dla_lacks(layer):
    assert count(layer, 1, 8).dla_kernels == 0


def test_the_dla_pools_small_windows_only():
    pool = nn.AdaptiveAvgPool2d(1)
    assert count(pool, 1, 4, 7, 7).dla_kernels == 1
    assert count(pool, 1, 4, 9, 9).dla_kernels == 0


def test_a_core_takes_the_16_segments_with_most_flops():
    widths = list(range(10, 30))
    layers = [layer for w in widths for layer in (nn.Linear(w, w + 1), nn.GELU())]
    work = count(nn.Sequential(*layers), 1, 10)
    flops = sorted((2 * w * (w + 1) for w in widths), reverse=True)
    assert work.dla_segments == DLA_LOADABLES == 16
    assert work.dla_flops == sum(flops[:16])
    assert work.dla_kernels == 16


def test_a_convolutional_encoder_fits_the_dla_whole_and_a_transformer_does_not():
    work = read_work()
    assert work["resnet-50"].without_dla() == Work(flops=0, bytes=0, kernels=0, parameters=0)
    for name in ("clip-vit-l14-336", "whisper-small", "videomae-base"):
        assert 0.2 < work[name].dla_flops / work[name].flops < 0.5


@given(st.sampled_from(sorted(read_work())), st.floats(0.1, 100))
def test_scaling_keeps_the_parts_within_the_whole(name, factor):
    work = read_work()[name].scaled(factor)
    rest = work.without_dla()
    assert min(rest.flops, rest.bytes, rest.kernels, rest.parameters) >= 0
    assert work.flops == pytest.approx(factor * read_work()[name].flops)
    assert work.bytes >= 4 * work.parameters
