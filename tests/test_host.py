"""This machine as a device: one encoder on random input, really run and measured."""

import pytest

from mllm_sched import paths
from mllm_sched.devices import open_device
from mllm_sched.devices.base import Device, KnownDevice
from mllm_sched.harness.reading import Reading
from mllm_sched.tasks import Task

TASK = Task("image", "tiny-clip")


class CountingMeter:
    """Charges ten joules a window."""

    evidence, source, min_window_s = "estimated", "ten joules a window", 0.0
    joules, windows = 10.0, 0

    def start(self):
        self.windows += 1

    def stop(self):
        return Reading(self.joules, self.joules, self.joules, 1.0)

    def close(self):
        pass


@pytest.fixture(scope="module")
def host(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", cache)
        device = open_device("host", encoder="tiny-clip")
        yield device
        device.close()


@pytest.fixture
def counted(host, monkeypatch):
    """The same, charged by the window."""
    monkeypatch.setattr(host, "_meter", CountingMeter())
    return host


def test_its_default_arms_really_run(host):
    assert isinstance(host, Device) and not isinstance(host, KnownDevice)
    assert host.space.names == ("precision", "threads", "batch")
    assert [arm.precision for arm in host.default_arms] == ["fp32", "int8"]
    for arm in host.default_arms:
        measurement = host.run(arm, TASK)
        assert not measurement.failed and measurement.evidence == "measured"
        assert 0 < measurement.latency_s < 5 and measurement.energy_j > 0
        assert measurement.arm == arm and measurement.task == TASK


@pytest.mark.parametrize(
    ("batch", "size", "repeats", "calls", "share"),
    [(1, 1, 1, 1, 1), (4, 1, 1, 1, 1 / 4), (2, 3, 1, 2, 3 / 4), (1, 1, 5, 5, 1 / 5)],
)
def test_a_task_is_charged_its_share_of_the_calls(
    counted, monkeypatch, batch, size, repeats, calls, share
):
    monkeypatch.setattr(counted, "repeats", repeats)
    arm = counted.space.arm(precision="fp32", threads=1, batch=batch)
    asked, ask = [], counted.encoders.ask
    monkeypatch.setattr(
        counted.encoders, "ask", lambda request, *rest: asked.append(request) or ask(request, *rest)
    )
    measurement = counted.run(arm, Task("image", "tiny-clip", size=size))
    opened, ran = asked
    assert (opened["batch"], ran["calls"]) == (batch, calls)
    assert measurement.energy_j == pytest.approx(10 * share) and counted.meter.windows == 1


def test_a_window_the_meter_cannot_see_is_a_failed_measurement(counted):
    counted.meter.joules = 0.0
    assert "too short for this meter; give repeats" in counted.run(counted.space[0], TASK).failed


@pytest.mark.parametrize("task", [Task("audio", "tiny-whisper"), Task("audio", "tiny-clip")])
def test_a_task_for_another_encoder_is_refused_by_name(host, task):
    with pytest.raises(ValueError, match=rf"{task.encoder}.*audio.*'tiny-clip' \(image\)"):
        host.run(host.space[0], task)


def test_an_arm_of_another_space_is_refused(host):
    with pytest.raises(ValueError, match="unknown factor 'component'"):
        host.run(open_device("agx-orin-sim").space[0], TASK)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": "tiny-x"}, "encoder 'tiny-x': expected one of"),
        ({"repeats": 0}, "repeats=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"component": "npu"}, "component='npu': expected one of cpu, gpu"),
        ({"repeat": 3}, "unknown setting 'repeat'; expected some of component, encoder"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        open_device("host", **settings)


def test_the_graphics_card_has_arms_of_its_own_and_is_never_replaced_by_the_cpu(host):
    device = open_device("host", encoder="tiny-clip", component="gpu", open_meter=CountingMeter)
    assert device.space.names == ("precision", "batch")
    assert {arm.precision for arm in device.default_arms} == {"fp32", "fp16"}
    failed = device.run(device.space[0], TASK).failed
    device.close()
    assert failed.startswith("FallbackError: gpu in fp32 needs TensorrtExecutionProvider")
