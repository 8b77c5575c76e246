import pytest
import torch

from data.encoders.count_work import REFERENCES, build_reference, count_work, resnet
from mllm_sched.devices.calibration import gpu_sweep

# torchvision's own figures, from the weight enums of its models: num_params, and _ops, the
# billions of multiply-adds at 520 x 520 pixels.
PUBLISHED = {
    "fcn_resnet50": (35322218, 152.717),
    "fcn_resnet101": (54314346, 232.738),
    "deeplabv3_resnet50": (42004074, 178.722),
    "deeplabv3_resnet101": (60996202, 258.743),
    "deeplabv3_mobilenet_v3_large": (11029328, 10.452),
    "lraspp_mobilenet_v3_large": (3221538, 2.086),
}


def parameters(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_equal_the_published_count(name):
    count, multiply_adds = PUBLISHED[name]
    with torch.device("meta"):
        model = build_reference(name)
        work = count_work(model, torch.empty(1, 3, 520, 520))
    assert parameters(model) == count
    assert work.flops / 2e9 == pytest.approx(multiply_adds, abs=6e-4)


def test_classifiers_have_the_published_parameters_and_multiply_adds():
    with torch.device("meta"):
        model = build_reference("resnet50_224")
        work = count_work(model, torch.empty(1, 3, 224, 224))
        assert parameters(resnet(34)) == 21797672
        assert parameters(resnet(50)) == parameters(model) == 25557032
    assert work.flops / 2e9 == pytest.approx(4.089, abs=6e-4)


def test_a_network_really_runs():
    scores, _ = build_reference("deeplabv3_mobilenet_v3_large")(torch.rand(1, 3, 64, 64))
    assert scores.shape == (1, 21, 64, 64) and torch.isfinite(scores).all()


def test_every_network_of_the_sweep_is_there():
    assert set(gpu_sweep()["network"]) <= set(REFERENCES)


def test_an_unknown_network_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'fcn_resnet18': expected one of fcn_resnet50.*resnet34"):
        build_reference("fcn_resnet18")
