"""Devices that encode real items of a model, and what is seen when something goes wrong."""

import math
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import torch
from decoupled import OMNI, halves, item
from small_board import SPACE

from mllm_sched.devices import Outage, jetson, open_device
from mllm_sched.devices.base import trusted_arms
from mllm_sched.devices.host import thread_levels
from mllm_sched.devices.model_encoders import ModelEncoders, Prepared
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.reading import MeterError, Reading
from mllm_sched.tasks import Task

NAME = "small-llava"
SWEEP = "trace:data/published/orin_sweep_trace.csv"


class Meter:
    """Ten joules a window, unless it is gone."""

    evidence, source, min_window_s, gone = "measured", "ten joules a window", 0.0, False

    def start(self):
        if Meter.gone:
            raise MeterError("the sensor is gone")

    def stop(self):
        self.start()
        return Reading(10.0, 10.0, 10.0, 1.0)

    def close(self):
        pass


@pytest.fixture(scope="module")
def model():
    """Encoders in one process, for all devices of this file."""
    encoders = ModelEncoders(NAME)
    yield encoders
    encoders.close()


@pytest.fixture(scope="module")
def host(model):
    device = open_device("host", model=model)
    yield device
    device.close()


@pytest.fixture
def metered(host, monkeypatch):
    """The same, with a meter that a test can break."""
    monkeypatch.setattr(Meter, "gone", False)
    for name, value in {"_meter": Meter(), "open_meter": Meter, "_meter_broke": False}.items():
        monkeypatch.setattr(host, name, value)
    return host


def some(device, count=1):
    return [device.encoders.prepare(item("image", seed)) for seed in range(count)]


def run(device, arm, items=None):
    items = some(device) if items is None else items
    (name,) = [name for name, takes in device.modalities.items() if takes == "image"]
    return device.run(arm, Task("image", name, size=max(1, len(items))), items)


def single(device):
    return device.space.arm(precision="float32", threads=1)


def test_what_its_trusted_arms_need_is_loaded_before_the_first_task(host, monkeypatch):
    trusted, asked = trusted_arms(host), []
    assert [(arm.precision, arm.threads) for arm in trusted] == [
        (precision, thread_levels()[-1]) for precision in ("float32", "int8")
    ]
    monkeypatch.setattr(host.encoders, "ask", lambda request, timeout_s: asked.append(request))
    host.load(trusted)
    assert asked == [{"do": "load", "precisions": ["float32", "int8"]}]


def test_every_precision_runs_and_features_are_those_of_the_half_to_the_last_bit(host):
    assert host.space.names == ("precision", "threads")
    for precision in ("int8", "bfloat16", "float32"):
        encoded = run(host, host.space.arm(precision=precision, threads=1))
        assert encoded.cause in ("", "meter") and encoded.task.encoder == f"{NAME}:image"
        assert 0 < encoded.latency_s < host.encoders.timeout_s
        assert encoded.parts[0].features.isfinite().all()
    features = halves(NAME)[0].encode(item("image")).features
    assert torch.equal(encoded.parts[0].features, features)


def test_the_items_of_a_batch_are_charged_together_and_wait_for_the_whole_call(metered):
    encoded = run(metered, single(metered), some(metered, 4))
    assert encoded.energy_j == 10 and encoded.task.size == len(encoded.parts) == 4


def test_this_process_holds_no_weights(model):
    modules = [model.half.model, *model.half.projectors.values()]
    tensors = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    assert tensors and all(tensor.is_meta for tensor in tensors)


def test_a_meter_that_is_gone_costs_the_energy_and_nothing_else(metered, monkeypatch):
    def broken():
        raise MeterError("the sensor broke")

    monkeypatch.setattr(Meter, "gone", True)
    for _ in range(2):
        encoded = run(metered, single(metered))
        assert encoded.parts and encoded.latency_s > 0 and math.isnan(encoded.energy_j)
        assert (encoded.failed, encoded.cause) == ("the sensor is gone", "meter")
    monkeypatch.setattr(Meter, "gone", False)
    encoded = run(metered, single(metered))
    assert encoded.energy_j == 10 and not encoded.failed
    monkeypatch.setattr(metered.meter, "stop", broken)
    assert run(metered, single(metered)).failed == "the sensor broke"
    assert run(metered, single(metered)).energy_j == 10  # it was opened anew


def test_an_estimate_never_takes_the_place_of_a_measurement(metered):
    class Estimate(Meter):
        evidence, source = "estimated", "a guess"

    metered.open_meter = Estimate
    metered.note(MeterError("gone"))
    encoded = run(metered, single(metered))
    assert "cannot be opened again" in encoded.failed and "only a guess" in encoded.failed
    assert encoded.parts and math.isnan(encoded.energy_j)


def test_input_that_the_encoder_refuses_fails_with_its_words_and_ends_nothing(host):
    (good,) = some(host)
    run(host, single(host), [good])
    pid = host.encoders.pid
    wrong = Prepared("image", {"pixel_values": torch.zeros(1, 3, 40, 40)}, good.layout)
    assert "40*40" in run(host, single(host), [wrong]).failed
    endless = Prepared("image", {"pixel_values": good.inputs["pixel_values"] / 0}, good.layout)
    assert run(host, single(host), [endless]).failed == "features that are not finite"
    assert run(host, single(host), [good]).parts and host.encoders.pid == pid


def test_what_cannot_be_asked_is_refused_at_once(host):
    arm, (good,) = single(host), some(host)
    other = replace(good, inputs={"pixel_values": torch.zeros(1, 3, 40, 40)})
    for items, words in [([], "no items"), ([good, other], "cannot be one batch")]:
        with pytest.raises(ValueError, match=words):
            run(host, arm, items)
    with pytest.raises(ValueError, match="1 items of image for another task"):
        host.run(arm, Task("image", f"{NAME}:image", size=2), [good])
    with pytest.raises(ValueError, match=f"this device runs '{NAME}:image'"):
        host.run(arm, Task("image", NAME), [good])
    with pytest.raises(ValueError, match="factor"):
        run(host, SPACE[0], [good])
    with pytest.raises(ValueError, match="no encoder for audio"):
        host.encoders.prepare(item("audio"))


@pytest.mark.parametrize(
    ("device", "settings", "words"),
    [
        ("abacus", {}, "expected one of agx-orin-sim, host"),
        ("host", {"timeout": 3}, "unknown setting 'timeout'; expected some of component"),
        ("host", {"component": "gpu"}, "run on the cpu alone"),
        ("agx-orin-sim", {"speed": -1}, "speed=-1"),
        ("agx-orin-sim", {"components": ["npu"]}, "npu"),
        ("agx-orin-sim", {"encoders": {"image": "whisper-small"}}, r"clip-vit-b32 \(image\)"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_there_is(model, device, settings, words):
    with pytest.raises(ValueError, match=words):
        open_device(device, model=model, **settings)


def test_encoders_that_there_are_not_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="expected one of small-llava"):
        ModelEncoders("small-talk")
    with pytest.raises(ValueError, match="timeout_s=0"):
        ModelEncoders(NAME, timeout_s=0)


def test_a_simulated_board_takes_its_own_time_and_the_features_are_real(model):
    device = open_device("agx-orin-sim", model=model, speed=4.0)
    assert [str(arm.component) for arm in trusted_arms(device)] == ["gpu", "dla"]
    assert (device.evidence, device.energy_evidence) == ("simulated", "simulated")
    arm = device.space.arm(component="gpu", power_w=15, load=0.2)
    run(device, arm)
    begun_s = time.monotonic()
    encoded = run(device, arm)
    assert time.monotonic() - begun_s >= encoded.latency_s / 4 > 0.1
    assert torch.equal(encoded.parts[0].features, halves(NAME)[0].encode(item("image")).features)
    assert encoded.energy_j > 0
    slow, fast = (open_device("agx-orin-sim", model=model, speed=speed) for speed in (4.0, 1e9))
    measured, behind = run(slow, arm), run(fast, arm)  # making features never counts as latency
    assert measured.latency_s == behind.latency_s and behind.behind_s > 0


def test_a_batch_on_a_simulated_board_is_one_larger_task(model):
    device = open_device("agx-orin-sim", model=model, speed=100.0)
    arm, batch = trusted_arms(device)[0], some(device, 4)
    alone, together = run(device, arm, batch[:1]), run(device, arm, batch)
    assert alone.latency_s < together.latency_s < 4 * alone.latency_s
    assert together.energy_j < 4 * alone.energy_j and len(together.parts) == 4


def test_an_emulated_failure_fails_and_an_emulated_hang_hangs(model, monkeypatch):
    monkeypatch.setattr(model, "timeout_s", 0.05)
    outages = [Outage("gpu", 0, 10)]
    device = open_device("agx-orin-sim", model=model, outages=outages, speed=1e6)
    gpu, dla = trusted_arms(device)
    assert run(device, gpu).failed == "gpu does not answer"
    hung = run(device, dla)
    assert (hung.cause, hung.hung_s, hung.parts) == ("hung", 0.05, ())


def test_closing_ends_a_run_that_waits_for_its_emulated_time(model, monkeypatch):
    monkeypatch.setattr(model, "close", lambda: None)  # others need it
    device = open_device("agx-orin-sim", model=model, speed=1e-4)
    closing = threading.Timer(0.3, device.close)
    begun_s = time.monotonic()
    closing.start()
    ended = run(device, trusted_arms(device)[0])
    assert time.monotonic() - begun_s < 10
    assert (ended.failed, ended.cause, ended.parts) == ("the device was closed", "crashed", ())
    closing.join()


def test_an_encoder_of_the_board_stands_for_each_of_the_model():
    device = open_device(
        "agx-orin-sim",
        model=ModelEncoders(OMNI),
        encoders={"image": "resnet-50"},
        components=["dla"],
    )
    assert device.space.factor("component").levels == ("dla",)
    expected = {"resnet-50": "image", "whisper-small": "audio", "videomae-base": "video"}
    assert device.modalities == expected
    with pytest.raises(ValueError, match="no encoder for audio, video"):
        open_device(SWEEP, model=ModelEncoders(OMNI))


def test_a_table_is_replayed_one_item_at_a_time(model):
    device = open_device(SWEEP, model=model)
    arm = trusted_arms(device)[0]
    encoded = run(device, arm)
    assert (device.name, device.evidence) == (SWEEP, "published")
    assert 0 < encoded.latency_s < 0.1 and encoded.parts
    with pytest.raises(ValueError, match="one by one"):
        run(device, arm, some(device, 2))


# The board, imitated.


@pytest.fixture
def board(tmp_path):
    with FakeJetson(tmp_path / "board") as board:
        yield board


def test_on_an_imitated_board_clocks_are_set_and_nothing_is_called_measured(board, model):
    device = open_device("agx-orin", model=model, root=board.root, rate_hz=2000)
    assert (device.evidence, device.energy_evidence) == ("simulated", "simulated")
    arm = device.space.arm(component="dla", power_w=50, load=0.2)
    run(device, arm)  # 4/5 of a call is a pause: long enough to be metered
    encoded = run(device, arm)
    assert encoded.parts and encoded.latency_s > 0
    assert encoded.energy_j > 0 or "too short" in encoded.failed
    assert device.state()["mode"] == "MODE_50W"
    subprocess.run([board.root / "usr/bin/jetson_clocks"], check=True)
    run(device, arm)
    assert device.state()["gpu_clock_pinned"] == "False"
    board.vanish("VIN_SYS_5V0")
    encoded = run(device, arm)
    assert encoded.parts and encoded.cause == "meter"
    board.bring_back("VIN_SYS_5V0")
    device.clocks.close()
    device.meter.close()
    assert device.state()["mode"] == "MAXN"


def test_on_a_board_the_accelerators_go_through_onnx_and_only_where_they_can(
    board, model, monkeypatch
):
    monkeypatch.setattr(jetson, "MARKER", "no such file")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [jetson.TENSORRT])
    omni = ModelEncoders(OMNI)
    with pytest.raises(ValueError, match="only the cpu can run them"):
        open_device("agx-orin", model=omni, root=board.root)
    with pytest.raises(ValueError, match="components: 'npu': expected some of gpu, cpu, dla"):
        open_device("agx-orin", model=omni, root=board.root, components=["npu"])
    open_device("agx-orin", model=omni, root=board.root, components=["cpu"]).close()
    device = open_device("agx-orin", model=model, root=board.root)
    found = {}
    for component in ("gpu", "dla", "cpu"):
        how = device.request(device.space.arm(component=component, power_w=60, load=0.4))
        found[component] = how["component"], how["precision"]
    device.clocks.close()
    device.meter.close()
    expected = {"gpu": ("gpu", "fp16"), "dla": ("dla0", "fp16"), "cpu": ("torch", "float32")}
    assert found == expected


def test_a_machine_that_is_no_board_says_so(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="this is no Jetson AGX Orin"):
        open_device("agx-orin", model=model, root=str(tmp_path))
