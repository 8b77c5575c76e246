"""Encoders on a device, and what an agent sees when something goes wrong with them."""

import math
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from decoupled import OMNI, halves, item
from small_board import SPACE

from mllm_sched.devices import Outage
from mllm_sched.devices.host import thread_levels
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.edge.encoder_process import Prepared
from mllm_sched.edge.runtimes import (
    EmulatedRuntime,
    HostRuntime,
    JetsonRuntime,
    SimulatedRuntime,
    TraceRuntime,
    open_runtime,
)
from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.meters import MendedMeter
from mllm_sched.harness.reading import MeterError, Reading

NAME = "small-llava"


class Meter:
    """Ten joules a window, unless it is gone."""

    evidence, source, min_window_s, gone = "measured", "ten joules a window", 0.0, False
    joules = 10.0

    def start(self):
        if Meter.gone:
            raise MeterError("the sensor is gone")

    def stop(self):
        self.start()
        return Reading(self.joules, self.joules, self.joules, 1.0)

    def close(self):
        pass


@pytest.fixture(scope="module")
def host():
    runtime = open_runtime("host", NAME)
    yield runtime
    runtime.close()


@pytest.fixture
def metered(host, monkeypatch):
    """The same, with a meter that a test can break."""
    monkeypatch.setattr(Meter, "gone", False)
    monkeypatch.setattr(host, "meters", MendedMeter(Meter))
    return host


@pytest.fixture
def beside(host, monkeypatch):
    """Runtimes of other devices, whose encoders are in the process that is there already."""
    opened = []

    def keep(runtime):
        runtime.process = host.process
        opened.append(runtime)
        return runtime

    yield keep
    monkeypatch.setattr(host.process, "kill", lambda: None)
    monkeypatch.setattr(host.process, "close", lambda: None)
    for runtime in opened:
        runtime.close()


def one(runtime, seed=0):
    return [runtime.prepare(item("image", seed))]


def single(runtime):
    return runtime.space.arm(precision="float32", threads=1)


def test_its_arms_are_precision_and_threads_and_all_cores_are_trusted_in_two_precisions(host):
    assert host.space.names == ("precision", "threads")
    trusted = [(arm.precision, arm.threads) for arm in host.trusted]
    assert trusted == [(precision, thread_levels()[-1]) for precision in ("float32", "int8")]


def test_what_its_trusted_arms_need_is_loaded_before_the_first_task(host, monkeypatch):
    asked = []
    monkeypatch.setattr(host.process, "ask", lambda request, timeout_s: asked.append(request))
    host.load(host.trusted)
    host.load([host.space.arm(precision="bfloat16", threads=threads) for threads in (1, 2)])
    assert [one["precisions"] for one in asked] == [["float32", "int8"], ["bfloat16"]]
    assert {one["do"] for one in asked} == {"load"}


def test_every_arm_runs_and_is_measured(host):
    for arm in host.space:
        encoded = host.encode(arm, one(host))
        assert (encoded.failed, encoded.meter_lost) == ("", "")
        assert 0 < encoded.latency_s < host.timeout_s and encoded.energy_j > 0
        assert encoded.parts[0].features.isfinite().all()


@pytest.mark.parametrize("cut", ["encoder", "projector"])
def test_features_are_those_of_the_half_to_the_last_bit(host, cut):
    (part,) = host.encode(single(host), one(host), cut).parts
    assert torch.equal(part.features, halves(NAME)[0].encode(item("image"), cut).features)
    assert host.identity == halves(NAME)[0].identity


def test_a_batch_is_charged_by_the_item_and_each_waits_for_the_whole_call(metered):
    batch = [metered.prepare(item("image", seed)) for seed in range(4)]
    assert len({metered.kind(each) for each in batch}) == 1
    encoded = metered.encode(single(metered), batch)
    assert encoded.energy_j == 10 / 4 and len(encoded.parts) == 4
    for seed, part in enumerate(encoded.parts):
        alone = halves(NAME)[0].encode(item("image", seed)).features
        torch.testing.assert_close(part.features, alone, rtol=1e-4, atol=1e-4)


def test_this_process_holds_no_weights(host):
    modules = [host.half.model, *host.half.projectors.values()]
    tensors = [each for module in modules for each in (*module.parameters(), *module.buffers())]
    assert tensors and all(tensor.is_meta for tensor in tensors)


@pytest.mark.slow
def test_one_that_hangs_is_killed_in_time_and_the_next_call_is_served_alike(host, monkeypatch):
    host.process.close()
    host.process.start()
    pid = host.process.pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(host.process, "open_timeout_s", 0.5)
    begun_s = time.monotonic()
    hung = host.encode(single(host), one(host))
    assert time.monotonic() - begun_s < 10
    assert (hung.failed, hung.why, hung.hung_s, hung.parts) == ("hangs", "hung", 0.5, ())
    assert math.isnan(hung.latency_s) and not os.path.exists(f"/proc/{pid}")
    monkeypatch.undo()
    (part,) = host.encode(single(host), one(host)).parts
    assert host.process.pid != pid
    assert torch.equal(part.features, halves(NAME)[0].encode(item("image")).features)


def test_a_meter_that_is_gone_costs_the_energy_and_nothing_else(metered, monkeypatch):
    monkeypatch.setattr(Meter, "gone", True)
    for _ in range(2):
        encoded = metered.encode(single(metered), one(metered))
        assert not encoded.failed and encoded.parts and encoded.latency_s > 0
        assert math.isnan(encoded.energy_j) and encoded.meter_lost == "the sensor is gone"
    monkeypatch.setattr(Meter, "gone", False)
    encoded = metered.encode(single(metered), one(metered))
    assert encoded.energy_j == 10 and not encoded.meter_lost


def test_a_meter_that_breaks_between_start_and_stop_is_opened_anew(metered, monkeypatch):
    run = metered.process.run

    def breaking(*args):
        monkeypatch.setattr(Meter, "gone", True)
        return run(*args)

    monkeypatch.setattr(metered.process, "run", breaking)
    first = metered.meters.meter
    assert metered.encode(single(metered), one(metered)).meter_lost == "the sensor is gone"
    monkeypatch.setattr(metered.process, "run", run)
    monkeypatch.setattr(Meter, "gone", False)
    assert metered.encode(single(metered), one(metered)).energy_j == 10
    assert metered.meters.meter is not first


def test_an_estimate_never_takes_the_place_of_a_measurement(metered):
    class Estimate(Meter):
        evidence, source = "estimated", "a guess"

    metered.meters._open = Estimate
    metered.meters.note(MeterError("gone"))
    encoded = metered.encode(single(metered), one(metered))
    assert "cannot be opened again" in encoded.meter_lost and "only a guess" in encoded.meter_lost
    assert encoded.parts and math.isnan(encoded.energy_j)


def test_a_call_in_which_the_counter_did_not_move_has_no_energy(metered, monkeypatch):
    monkeypatch.setattr(Meter, "joules", 0.0)
    encoded = metered.encode(single(metered), one(metered))
    assert "too short for this meter" in encoded.meter_lost and math.isnan(encoded.energy_j)


def test_input_that_the_encoder_refuses_fails_with_its_words_and_ends_nothing(host):
    (good,) = one(host)
    host.encode(single(host), [good])
    pid = host.process.pid
    wrong = Prepared("image", {"pixel_values": torch.zeros(1, 3, 40, 40)}, good.layout)
    assert "40*40" in host.encode(single(host), [wrong]).failed
    endless = Prepared("image", {"pixel_values": good.inputs["pixel_values"] / 0}, good.layout)
    assert host.encode(single(host), [endless]).failed == "features that are not finite"
    assert not host.encode(single(host), [good]).failed and host.process.pid == pid


def test_what_cannot_be_asked_is_refused_at_once(host):
    arm, (good,) = single(host), one(host)
    other = replace(good, inputs={"pixel_values": torch.zeros(1, 3, 40, 40)})
    for prepared, cut, words in [
        ([], "encoder", "no items"),
        ([good], "input", "cut='input'"),
        ([good, other], "encoder", "cannot be one batch"),
    ]:
        with pytest.raises(ValueError, match=words):
            host.encode(arm, prepared, cut)
    with pytest.raises(ValueError, match="factor"):
        host.encode(SPACE[0], [good])
    with pytest.raises(ValueError, match="no encoder for audio"):
        host.prepare(item("audio"))


def test_it_says_what_it_is(host):
    said = host.describe()
    for words in ("device host", "trusted: precision=float32", "latency measured", host.meter):
        assert words in said
    assert f"image by {NAME}:image" in said and host.modalities == ("image",)


@pytest.mark.slow
def test_closing_ends_a_call_under_way_and_takes_no_more():
    runtime = HostRuntime("host", NAME)  # its process is started by the first call

    def close():
        while runtime.process.pid is None:
            time.sleep(0.01)
        runtime.close()

    closing = threading.Thread(target=close)
    closing.start()
    assert "killed by SIGKILL" in runtime.encode(single(runtime), one(runtime)).failed
    closing.join()
    assert runtime.process.pid is None
    with pytest.raises(RuntimeError, match="is closed"):
        runtime.encode(single(runtime), one(runtime))


@pytest.mark.parametrize(
    ("device", "model", "settings", "words"),
    [
        ("abacus", NAME, {}, "expected one of host, agx-orin"),
        ("host", "small-talk", {}, "expected one of small-llava"),
        ("host", NAME, {"timeout": 3}, "unknown setting 'timeout'; expected some of timeout_s"),
        ("host", NAME, {"timeout_s": 0}, "timeout_s=0"),
        ("agx-orin-sim", NAME, {"speed": -1}, "speed=-1"),
        ("agx-orin-sim", NAME, {"components": ["npu"]}, "npu"),
        ("agx-orin-sim", NAME, {"encoders": {"image": "whisper-small"}}, r"clip-vit-b32 \(image\)"),
        ("trace:data/published/orin_sweep_trace.csv", OMNI, {}, "no encoder for audio, video"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_there_is(device, model, settings, words):
    with pytest.raises(ValueError, match=words):
        open_runtime(device, model, settings=settings)


# A board that is not there.


def test_a_simulated_board_takes_its_own_time_and_the_features_are_real(beside):
    runtime = beside(SimulatedRuntime("agx-orin-sim", NAME, speed=4.0))
    assert [str(arm.component) for arm in runtime.trusted] == ["gpu", "dla"]
    assert (runtime.evidence, runtime.energy_evidence) == ("simulated", "simulated")
    arm = runtime.space.arm(component="gpu", power_w=15, load=0.2)
    runtime.encode(arm, one(runtime))
    begun_s = time.monotonic()
    encoded = runtime.encode(arm, one(runtime))
    assert time.monotonic() - begun_s >= encoded.latency_s / 4 > 0.1
    assert torch.equal(encoded.parts[0].features, halves(NAME)[0].encode(item("image")).features)
    assert encoded.energy_j > 0


def test_making_the_features_never_counts_as_latency(beside):
    slow, fast = (
        beside(SimulatedRuntime("agx-orin-sim", NAME, speed=speed)) for speed in (1.0, 1e9)
    )
    arm = slow.trusted[0]
    measured, behind = slow.encode(arm, one(slow)), fast.encode(arm, one(fast))
    assert measured.latency_s == behind.latency_s and behind.behind_s > 0


def test_a_batch_on_a_simulated_board_is_one_larger_task(beside):
    runtime = beside(SimulatedRuntime("agx-orin-sim", NAME, speed=100.0))
    arm, batch = runtime.trusted[0], [runtime.prepare(item("image", seed)) for seed in range(4)]
    alone, together = runtime.encode(arm, batch[:1]), runtime.encode(arm, batch)
    assert alone.latency_s < together.latency_s < 4 * alone.latency_s
    assert together.energy_j < alone.energy_j and len(together.parts) == 4


def test_an_emulated_failure_fails_and_an_emulated_hang_hangs(beside):
    board = SimulatedOrin(outages=[Outage("gpu", 0, 10)])
    runtime = beside(EmulatedRuntime(board, NAME, 0, (), None, 1e6, 0.05, 60.0))
    gpu, dla = runtime.trusted
    assert runtime.encode(gpu, one(runtime)).failed == "gpu does not answer"
    hung = runtime.encode(dla, one(runtime))
    assert (hung.failed, hung.why, hung.hung_s, hung.parts) == ("hangs", "hung", 0.05, ())


def test_an_encoder_of_the_board_stands_for_each_of_the_model(beside):
    runtime = beside(
        SimulatedRuntime("agx-orin-sim", OMNI, encoders={"image": "resnet-50"}, components=["dla"])
    )
    assert runtime.space.factor("component").levels == ("dla",)
    found = [runtime.encoder(modality) for modality in ("image", "audio", "video")]
    assert found == ["resnet-50", "whisper-small", "videomae-base"]


def test_a_table_is_replayed_one_item_at_a_time(beside):
    name = "trace:data/published/orin_sweep_trace.csv"
    runtime = beside(TraceRuntime(name, NAME))
    (prepared,) = one(runtime)
    encoded = runtime.encode(runtime.trusted[0], [prepared])
    assert (runtime.name, runtime.evidence) == (name, "published")
    assert 0 < encoded.latency_s < 0.1 and encoded.parts
    with pytest.raises(ValueError, match="one by one"):
        runtime.encode(runtime.trusted[0], [prepared, prepared])


# The board, imitated.


@pytest.fixture
def board(tmp_path):
    with FakeJetson(tmp_path / "board") as board:
        yield board


def test_on_an_imitated_board_clocks_are_set_and_nothing_is_called_measured(board, beside):
    runtime = beside(JetsonRuntime("agx-orin", NAME, root=str(board.root), rate_hz=2000))
    assert (runtime.evidence, runtime.energy_evidence) == ("simulated", "simulated")
    arm = runtime.space.arm(component="dla", power_w=50, load=0.2)
    runtime.encode(arm, one(runtime))  # 4/5 of a call is a pause: long enough to be metered
    encoded = runtime.encode(arm, one(runtime))
    assert not encoded.failed and encoded.latency_s > 0
    assert encoded.energy_j > 0 or "too short" in encoded.meter_lost
    assert "mode MODE_50W" in runtime.describe()
    board.vanish("VIN_SYS_5V0")
    encoded = runtime.encode(arm, one(runtime))
    assert not encoded.failed and encoded.parts and encoded.meter_lost
    board.bring_back("VIN_SYS_5V0")
    runtime.board.close()
    assert runtime.board.state()["mode"] == "MAXN"


def test_on_a_board_the_accelerators_go_through_onnx_and_only_where_they_can(board, monkeypatch):
    from mllm_sched.devices import jetson

    monkeypatch.setattr(jetson, "MARKER", "no such file")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [jetson.TENSORRT])
    root = str(board.root)
    with pytest.raises(ValueError, match="only the cpu can run them"):
        JetsonRuntime("agx-orin", OMNI, root=root)
    JetsonRuntime("agx-orin", OMNI, root=root, components=["cpu"]).close()
    runtime = JetsonRuntime("agx-orin", NAME, root=root)
    found = {}
    for component in ("gpu", "dla", "cpu"):
        how = runtime._how(runtime.space.arm(component=component, power_w=60, load=0.4))
        found[component] = (how.component, how.precision, how.load)
    runtime.close()
    assert found == {
        "gpu": ("gpu", "fp16", 0.4),
        "dla": ("dla0", "fp16", 0.4),
        "cpu": ("torch", "float32", 0.4),
    }


def test_a_machine_that_is_no_board_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="this is no Jetson AGX Orin"):
        open_runtime("agx-orin", NAME, settings={"root": str(tmp_path)})


# Last, because another process would take seconds to start.


def test_a_crash_in_mid_call_fails_that_call_and_says_how(host):
    host.encode(single(host), one(host))
    os.kill(host.process.pid, signal.SIGSTOP)  # so that it is surely in mid-call
    killing = threading.Timer(0.3, os.kill, (host.process.pid, signal.SIGKILL))
    killing.start()
    crashed = host.encode(single(host), one(host))
    killing.join()
    assert crashed.failed == "the encoder crashed: killed by SIGKILL"
    assert crashed.why == "crashed" and crashed.hung_s == 0
    assert crashed.parts == () and host.process.pid is None
