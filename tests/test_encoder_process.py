"""What the two sides say to each other; the answering side is in this process, where it can be."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from decoupled import MODALITIES, OMNI, halves, item

from mllm_sched import paths
from mllm_sched.edge.encoder_process import EncoderProcess, How, LoadedEncoders, Prepared

KINDS = [(name, modality) for name, held in MODALITIES.items() for modality in held]


class Beside(EncoderProcess):
    """Asks as ever, of a side that answers in this process."""

    def __init__(self, name):
        super().__init__(name, 0, (), 10.0, 10.0)
        self.side, self.asked = LoadedEncoders(name, 0, ()), []

    def exchange(self, request, data, timeout_s):
        self.asked.append((request, timeout_s))
        said, behind = self.side.answer(json.loads(json.dumps(request)), bytes(data))
        return said, memoryview(behind)


@pytest.fixture(scope="module")
def process():
    opened = {}
    return lambda name: opened.setdefault(name, Beside(name))


def prepared(name, modality, seed=0):
    return Prepared(modality, *halves(name)[0].prepare(item(modality, seed)))


def encoded(process, batch, cut="projector", how=None):
    process.bring(batch, cut, how or How())
    assert process.run() > 0
    return process.features(batch, cut)


@pytest.mark.parametrize("cut", ["encoder", "projector"])
@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_in_float32_features_are_those_of_the_half_to_the_last_bit(process, name, modality, cut):
    (part,) = encoded(process(name), [prepared(name, modality)], cut)
    expected = halves(name)[0].encode(item(modality), cut)
    assert torch.equal(part.features, expected.features)
    assert (part.modality, part.cut, part.layout) == (modality, cut, expected.layout)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_lower_precision_gives_nearly_the_same_and_the_same_again(
    process, name, modality, precision
):
    asked, how = [prepared(name, modality)], How(precision)
    (part,), (again,) = (encoded(process(name), asked, "encoder", how) for _ in range(2))
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
    mine, how = prepared("small-llava", "image"), How("int8")
    first, _ = encoded(process("small-llava"), [mine, loud], how=how)
    assert torch.equal(first.features, encoded(process("small-llava"), [mine], how=how)[0].features)


def test_what_differs_in_modality_shape_or_layout_is_of_another_kind():
    image, video, audio = (prepared(OMNI, kind) for kind in ("image", "video", "audio"))
    assert len({image.kind, video.kind, audio.kind}) == 3
    faster = Prepared("video", video.inputs, type(video.layout)(video.layout.grid, 0.5))
    assert faster.kind != video.kind
    assert prepared(OMNI, "image", 7).kind == image.kind


def test_what_was_loaded_before_is_not_made_when_it_is_first_asked_for(monkeypatch):
    beside = Beside("small-llava")
    beside.load(["float32", "int8"])
    monkeypatch.setattr(
        "mllm_sched.edge.encoder_process._converted", None
    )  # whoever converts, fails
    assert encoded(beside, [prepared("small-llava", "image")], how=How(precision="int8"))
    with pytest.raises(TypeError):
        encoded(beside, [prepared("small-llava", "image")], how=How(precision="bfloat16"))


def test_an_arm_is_warmed_up_once_for_a_kind_and_given_the_time_to_load(process):
    side, asked = Beside("small-llava"), [prepared("small-llava", "image")]
    side.timeout_s, side.open_timeout_s = 1.0, 60.0
    for batch, how in [(1, How()), (1, How()), (2, How()), (1, How("int8")), (1, How())]:
        side.bring(asked * batch, "projector", how)
    told = [(request["warm_up"], timeout_s) for request, timeout_s in side.asked]
    cold, warm = (True, 60.0), (False, 1.0)
    assert told == [cold, warm, cold, cold, warm]
    side.close()  # whatever comes next begins cold
    side.bring(asked, "projector", How())
    assert side.asked[-1][0]["warm_up"]


def test_a_load_pauses_after_the_call_and_the_pause_counts(process):
    side, asked = process("small-llava"), [prepared("small-llava", "image")]
    side.bring(asked, "projector", How())
    begun_s = time.perf_counter()
    took_s = side.run(load=0.02)
    assert time.perf_counter() - begun_s >= took_s > 0.02  # a call of a millisecond, 49 of pause
    assert side.asked[-1][1] == side.timeout_s / 0.02


def test_nothing_runs_before_it_was_brought():
    with pytest.raises(ValueError, match="nothing was brought"):
        Beside("small-llava").run()


@pytest.mark.parametrize(
    "name", ["small-llava", pytest.param("small-voxtral", marks=pytest.mark.slow)]
)
def test_the_way_through_onnx_gives_the_same_features(process, name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    (modality,) = MODALITIES[name]
    asked = [prepared(name, modality)]
    (part,) = encoded(process(name), asked, how=How("fp32", component="cpu"))
    exact = halves(name)[0].encode(item(modality)).features
    torch.testing.assert_close(part.features, exact, rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.glob("*.onnx"))) == 1


def test_what_has_no_one_shape_cannot_go_through_onnx(process):
    with pytest.raises(ValueError, match="only the cpu can run them"):
        process(OMNI).bring([prepared(OMNI, "image")], "projector", How("fp16", component="dla0"))


ORPHAN = """
import sys
import numpy as np
from safetensors.numpy import save
from mllm_sched.harness.subprocess_worker import Child
held = '{"name": "small-llava", "seed": 0, "modalities": []}'
child = Child([sys.executable, "-m", "mllm_sched.edge.encoder_process", held])
layout = {"grid": None, "seconds_per_grid": None, "mel_frames": None}
child.exchange(
    {"do": "bring", "precision": "float32", "threads": 1, "component": "torch", "modality": "image",
     "layouts": [layout], "cut": "encoder", "warm_up": True},
    save({"pixel_values": np.zeros((1, 1, 3, 56, 56), np.float32)}), 120)
print(child.pid, flush=True)
child.ask({"do": "run", "load": 1e-9}, 1e6)
"""


@pytest.mark.slow
def test_the_encoders_end_with_the_agent_even_in_mid_call():
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    ends_s = time.monotonic() + 20
    while time.monotonic() < ends_s and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
