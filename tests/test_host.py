import math
import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched import paths
from mllm_sched.devices import open_device
from mllm_sched.devices.base import Device, KnownDevice
from mllm_sched.devices.host import HostDevice, thread_levels
from mllm_sched.harness.reading import Reading
from mllm_sched.tasks import Task

TASK = Task("image", "tiny-clip")


class CountingMeter:
    """Charges ten joules a window."""

    evidence, source, min_window_s = "estimated", "ten joules a window", 0.0

    def __init__(self, joules=10.0):
        self.joules, self.windows = joules, 0

    def start(self):
        self.windows += 1

    def stop(self):
        return Reading(self.joules, self.joules, self.joules, 1.0)

    def close(self):
        pass


@pytest.fixture
def host(cache, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", cache)

    devices = []

    def opened(**settings):
        devices.append(HostDevice(**{"encoder": "tiny-clip", **settings}))
        return devices[-1]

    yield opened
    for device in devices:
        device.close()


def test_every_arm_really_runs(host):
    device = host()
    for arm in device.space:
        measurement = device.run(arm, TASK)
        assert not measurement.failed
        assert 0 < measurement.latency_s < 5 and measurement.energy_j > 0
        assert measurement.arm == arm and measurement.task == TASK


def test_its_arms_are_precision_threads_and_batch(host):
    space = host().space
    assert space.names == ("precision", "threads", "batch")
    assert space.factor("threads").levels[0] == 1


def test_latency_is_measured_and_energy_is_what_the_meter_says(host):
    device = host(open_meter=CountingMeter)
    measurement = device.run(device.space[0], TASK)
    assert (measurement.evidence, measurement.energy_evidence) == ("measured", "estimated")
    assert isinstance(device, Device) and not isinstance(device, KnownDevice)


@pytest.mark.parametrize(
    ("batch", "size", "calls", "share"), [(1, 1, 1, 1), (4, 1, 1, 1 / 4), (2, 3, 2, 3 / 4)]
)
def test_a_task_is_charged_its_share_of_the_calls(host, batch, size, calls, share):
    device = host(open_meter=CountingMeter)
    arm = device.space.arm(precision="fp32", threads=1, batch=batch)
    asked, ask = [], device.encoders.ask
    device.encoders.ask = lambda request, *rest: asked.append(request) or ask(request, *rest)
    measurement = device.run(arm, Task("image", "tiny-clip", size=size))
    opened, ran = asked
    assert (opened["batch"], ran["calls"]) == (batch, calls)
    assert measurement.energy_j == pytest.approx(10 * share)


def test_repeats_are_averaged_in_one_window(host):
    device = host(open_meter=CountingMeter, repeats=5)
    measurement = device.run(device.space[0], TASK)
    assert measurement.energy_j == pytest.approx(10 / 5)
    assert device.meter.windows == 1


def test_a_larger_batch_makes_each_item_wait_longer(host):
    device = host(repeats=50)
    one, four = (
        device.run(device.space.arm(precision="fp32", threads=1, batch=batch), TASK)
        for batch in (1, 4)
    )
    assert four.latency_s > one.latency_s


def test_an_encoder_that_crashes_is_a_failed_measurement_and_the_next_one_runs(host):
    device = host()
    device.run(device.space[0], TASK)
    os.kill(device.encoders.pid, signal.SIGSEGV)
    time.sleep(0.2)
    measurement = device.run(device.space[0], TASK)
    assert measurement.failed.startswith("the encoder crashed: killed by SIGSEGV")
    assert math.isnan(measurement.latency_s) and math.isnan(measurement.energy_j)
    assert not device.run(device.space[1], TASK).failed


def test_an_encoder_that_hangs_is_a_failed_measurement_and_the_next_one_runs(host):
    device = host(timeout_s=1.0)
    device.run(device.space[0], TASK)
    hanging = device.encoders.pid
    os.kill(hanging, signal.SIGSTOP)
    device.prepare = lambda *_: {}  # opening has a longer timeout
    assert device.run(device.space[0], TASK).failed == (
        "the encoder hangs: no answer in 1 s; killed"
    )
    del device.prepare
    assert not device.run(device.space[0], TASK).failed
    assert device.encoders.pid != hanging


def test_a_window_the_meter_cannot_see_is_a_failed_measurement(host):
    device = host(open_meter=lambda: CountingMeter(joules=0.0))
    assert "too short for this meter; give repeats" in device.run(device.space[0], TASK).failed


@pytest.mark.parametrize("task", [Task("audio", "tiny-whisper"), Task("audio", "tiny-clip")])
def test_a_task_for_another_encoder_is_refused_by_name(host, task):
    device = host()
    with pytest.raises(ValueError, match=rf"{task.encoder}.*audio.*'tiny-clip' \(image\)"):
        device.run(device.space[0], task)


def test_an_arm_of_another_space_is_refused(host):
    with pytest.raises(ValueError, match="unknown factor 'component'"):
        host().run(open_device("agx-orin-sim").space[0], TASK)


def test_it_runs_again_after_it_was_closed_twice(host):
    device = host()
    device.run(device.space[0], TASK)
    device.close()
    device.close()
    assert not device.run(device.space[0], TASK).failed


def test_bad_settings_are_named(host):
    with pytest.raises(ValueError, match="encoder 'tiny-x': expected one of"):
        host(encoder="tiny-x")
    with pytest.raises(ValueError, match="repeats=0"):
        host(repeats=0)


def test_it_is_opened_by_name(host):
    device = open_device("host", seed=3, encoder="tiny-clip", open_meter=CountingMeter)
    assert device.name == "host"
    assert not device.run(device.space[0], TASK).failed


def test_a_machine_with_one_core_has_one_thread_level():
    assert thread_levels(1) == [1]


@given(st.integers(1, 512))
def test_thread_levels_rise_from_one_to_all_cores(cores):
    levels = thread_levels(cores)
    assert levels[0] == 1 and levels[-1] == cores
    assert levels == sorted(set(levels))


def test_the_graphics_card_has_arms_of_its_own_and_is_never_replaced_by_the_cpu(host):
    device = host(component="gpu", open_meter=CountingMeter)
    assert device.space.names == ("precision", "batch")
    assert {arm.precision for arm in device.default_arms} == {"fp32", "fp16"}
    failed = device.run(device.space[0], TASK).failed
    assert failed.startswith("FallbackError: gpu in fp32 needs TensorrtExecutionProvider")


def test_without_a_card_its_meter_says_so(host):
    with pytest.raises(OSError, match="no NVIDIA graphics card can be read"):
        host(component="gpu")
    with pytest.raises(ValueError, match="component='npu': expected one of cpu, gpu"):
        host(component="npu")
