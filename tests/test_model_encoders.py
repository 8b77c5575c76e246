"""What the two sides say to each other; the answering side is in this process, where it can be."""

import json
import time

import pytest
import torch
from decoupled import MODALITIES, OMNI, halves, item

from mllm_sched import paths
from mllm_sched.devices import model_encoders
from mllm_sched.devices.model_encoders import FLOAT32, ModelEncoders, ModelServer, Prepared

KINDS = [(name, modality) for name, held in MODALITIES.items() for modality in held]
BFLOAT16, INT8 = ({**FLOAT32, "precision": precision} for precision in ("bfloat16", "int8"))


class Beside(ModelEncoders):
    """Asks as ever, of a child's side that answers in this process."""

    def __init__(self, name, cut="projector", side=None):
        super().__init__(name, cut=cut)
        self.side, self.asked = side or ModelServer(name, 0, ()), []

    def exchange(self, request, data, timeout_s):
        self.asked.append((request, timeout_s))
        said, behind = self.side.answer(json.loads(json.dumps(request)), bytes(data))
        return said, memoryview(behind)


@pytest.fixture(scope="module")
def process():
    sides = {}

    def opened(name, cut="projector"):
        beside = Beside(name, cut, sides.get(name))
        sides[name] = beside.side
        return beside

    return opened


def prepared(name, modality, seed=0):
    return Prepared(modality, *halves(name)[0].prepare(item(modality, seed)))


def encoded(process, batch, how=FLOAT32):
    process.open(how, batch)
    assert process.run().mean_s > 0
    return process.features(batch)


@pytest.mark.parametrize("cut", ["encoder", "projector"])
@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_in_float32_features_are_those_of_the_half_to_the_last_bit(process, name, modality, cut):
    (part,) = encoded(process(name, cut), [prepared(name, modality)])
    expected = halves(name)[0].encode(item(modality), cut)
    assert torch.equal(part.features, expected.features)
    assert (part.modality, part.cut, part.layout) == (modality, cut, expected.layout)


@pytest.mark.parametrize("how", [BFLOAT16, INT8])
@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_lower_precision_gives_nearly_the_same_and_the_same_again(process, name, modality, how):
    asked, beside = [prepared(name, modality)], process(name, "encoder")
    (part,), (again,) = (encoded(beside, asked, how) for _ in range(2))
    assert part.features.dtype is torch.float32 and torch.equal(part.features, again.features)
    exact = halves(name)[0].encode(item(modality), "encoder").features
    error = (part.features - exact).norm() / exact.norm()
    assert 0 < error < 0.15


@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_items_of_one_kind_are_encoded_in_one_call_as_they_are_alone(process, name, modality):
    batch = [prepared(name, modality, seed) for seed in range(3)]
    assert len({each.kind for each in batch}) == 1
    together = encoded(process(name), batch)
    alone = [encoded(process(name), [each])[0] for each in batch]
    for part, single in zip(together, alone, strict=True):
        torch.testing.assert_close(part.features, single.features, rtol=1e-4, atol=1e-4)
        assert part.layout == single.layout
    assert not torch.allclose(together[0].features, together[1].features, atol=1e-3)


def test_in_int8_an_item_does_not_feel_whose_else_it_is_encoded_with(process):
    loud = prepared("small-llava", "image", 1)
    loud = Prepared("image", {"pixel_values": 50 * loud.inputs["pixel_values"]}, loud.layout)
    mine, beside = prepared("small-llava", "image"), process("small-llava")
    first, _ = encoded(beside, [mine, loud], INT8)
    assert torch.equal(first.features, encoded(beside, [mine], INT8)[0].features)


def test_what_differs_in_modality_shape_or_layout_is_of_another_kind():
    image, video, audio = (prepared(OMNI, kind) for kind in ("image", "video", "audio"))
    assert len({image.kind, video.kind, audio.kind}) == 3
    faster = Prepared("video", video.inputs, type(video.layout)(video.layout.grid, 0.5))
    assert faster.kind != video.kind
    assert prepared(OMNI, "image", 7).kind == image.kind


def test_what_was_loaded_before_is_not_made_when_it_is_first_asked_for(monkeypatch):
    beside, asked = Beside("small-llava"), [prepared("small-llava", "image")]
    beside.load([FLOAT32, INT8])
    monkeypatch.setattr(model_encoders, "_converted", None)  # whoever converts, fails
    assert encoded(beside, asked, INT8)
    with pytest.raises(TypeError):
        encoded(beside, asked, BFLOAT16)


def test_an_arm_is_warmed_up_once_for_a_kind_and_given_the_time_to_load(process):
    side, asked = process("small-llava"), [prepared("small-llava", "image")]
    side.timeout_s, side.open_timeout_s = 1.0, 60.0
    for batch, how in [(1, FLOAT32), (1, FLOAT32), (2, FLOAT32), (1, INT8), (1, FLOAT32)]:
        side.open(how, asked * batch)
    told = [(request["warm_up"], timeout_s) for request, timeout_s in side.asked]
    cold, warm = (True, 60.0), (False, 1.0)
    assert told == [cold, warm, cold, cold, warm]
    side.close()  # whatever comes next begins cold
    side.open(FLOAT32, asked)
    assert side.asked[-1][0]["warm_up"]


def test_a_load_pauses_after_the_call_and_the_pause_counts(process):
    with pytest.raises(ValueError, match="no encoder was opened"):
        Beside("small-llava").run()
    side = process("small-llava")
    side.open(FLOAT32, [prepared("small-llava", "image")])
    begun_s = time.perf_counter()
    took_s = side.run(load=0.02).mean_s
    assert time.perf_counter() - begun_s >= took_s > 0.02  # a call of a millisecond, 49 of pause
    assert side.asked[-1][1] == side.timeout_s / 0.02


@pytest.mark.parametrize(
    "name", ["small-llava", pytest.param("small-voxtral", marks=pytest.mark.slow)]
)
def test_the_way_through_onnx_gives_the_same_features(process, name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    (modality,) = MODALITIES[name]
    asked = [prepared(name, modality)]
    (part,) = encoded(process(name), asked, {**FLOAT32, "component": "cpu", "precision": "fp32"})
    exact = halves(name)[0].encode(item(modality)).features
    torch.testing.assert_close(part.features, exact, rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.glob("*.onnx"))) == 1
