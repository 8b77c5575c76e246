import numpy as np
import pytest

from mllm_sched.devices import Background, Drift, Noise, Throttling, open_device
from mllm_sched.devices.base import KnownDevice
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")


def board(**settings):
    return open_device("agx-orin-sim", **settings)


def test_noise_scatters_around_the_expected_mean():
    device = board(noise=Noise(0.05, 0.1))
    assert isinstance(device, KnownDevice)
    assert device.evidence == device.energy_evidence == "simulated"
    arm = device.space[19]
    runs = [device.run(arm, TASK) for _ in range(2000)]
    expected = device.expected(arm, TASK)
    for name, sd in [("latency_s", 0.05), ("energy_j", np.hypot(0.05, 0.1))]:
        values = np.array([getattr(run, name) for run in runs])
        assert values.mean() == pytest.approx(getattr(expected, name), rel=0.01)
        assert np.log(values).std() == pytest.approx(sd, rel=0.1)


def test_a_smaller_share_is_slower_and_more_power_not_always_cheaper_nor_always_more_expensive():
    means = board().expected_all(TASK)
    assert (np.diff(means.latency_s.reshape(3, 4, 5), axis=2) < 0).all()
    gpu_full_share = means.energy_j.reshape(3, 4, 5)[0, :, -1]
    assert {-1, 1} <= set(np.sign(np.diff(gpu_full_share)))


def test_the_dla_does_more_per_joule_than_the_gpu_on_a_convolutional_encoder():
    gpu, _, dla = board().expected_all(Task("image", "resnet-50")).energy_j.reshape(3, 4, 5)
    assert (dla[:, -1] < gpu[:, -1]).all()


def test_background_load_slows_a_task_as_context_and_as_disturbance():
    device = board()
    quiet = device.expected_all(TASK).latency_s
    busy = device.expected_all(Task("image", TASK.encoder, background_load=0.5)).latency_s
    assert (busy >= 2 * quiet).all()
    disturbed = board(background=[Background(0.5, start=3, stop=5)], noise=Noise(0, 0))
    arm = disturbed.space[19]
    latency = [disturbed.run(arm, TASK).latency_s for _ in range(7)]
    assert latency[3] == latency[4] == pytest.approx(busy[19])
    assert latency[0] == latency[2] == latency[5] == pytest.approx(quiet[19])


def test_drift_slows_one_component_from_its_start():
    device = board(drift=[Drift("gpu", 1.35, start=2, over=2)], noise=Noise(0, 0))
    gpu, dla = (device.space.arm(component=c, power_w=60, load=1.0) for c in ("gpu", "dla"))
    before = {arm: device.expected(arm, TASK).latency_s for arm in (gpu, dla)}
    latency = [device.run(gpu, TASK).latency_s / before[gpu] for _ in range(6)]
    assert latency == pytest.approx([1, 1, 1, 1.35**0.5, 1.35, 1.35])
    assert device.expected(dla, TASK).latency_s == before[dla]


def test_throttling_needs_heat():
    device = board(throttling=Throttling(kelvin_per_w=3.0, tau_s=2.0), noise=Noise(0, 0))
    hot, cool = (device.space.arm(component="gpu", power_w=w, load=1.0) for w in (60, 15))
    start = device.expected(hot, TASK).latency_s
    for _ in range(200):
        device.run(hot, TASK)
    assert device.temperature_c > 85
    assert device.expected(hot, TASK).latency_s > 1.05 * start
    for _ in range(200):
        device.run(cool, TASK)
    assert device.expected(hot, TASK).latency_s == start


def test_unknown_encoder_modality_and_component_are_named():
    device = board()
    with pytest.raises(ValueError, match=r"'vgg': expected one of .*clip-vit-l14-336"):
        device.run(device.space[0], Task("image", "vgg"))
    with pytest.raises(ValueError, match="takes audio, not image"):
        device.run(device.space[0], Task("image", "whisper-small"))
    with pytest.raises(ValueError, match="drift: 'tpu': expected one of gpu, cpu, dla"):
        board(drift=[Drift("tpu", 1.2, start=5)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(-0.1, 0), "latency_sd=-0.1"),
        (lambda: Drift("gpu", 0, 1), "factor=0"),
        (lambda: Drift("gpu", 1.1, -1), "start=-1"),
        (lambda: Background(1.0, 0, 1), "share=1.0"),
        (lambda: Background(0.1, 2, 1), "stop=1"),
    ],
)
def test_a_bad_disturbance_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_marginal_energy_leaves_idle_power_out():
    total, marginal = board(), board(accounting="marginal")
    difference = total.expected_all(TASK).energy_j - marginal.expected_all(TASK).energy_j
    idle_w = difference / total.expected_all(TASK).latency_s
    assert ((idle_w > 6.3) & (idle_w < 6.9)).all()
    with pytest.raises(ValueError, match="accounting='wall': expected one of total, marginal"):
        board(accounting="wall")


def test_components_can_be_left_out():
    device, whole = board(components=["gpu", "dla"]), board()
    assert len(device.space) == 40
    arm = device.space.arm(component="dla", power_w=50, load=0.4)
    assert device.expected(arm, TASK).energy_j == whole.expected(arm, TASK).energy_j
    with pytest.raises(ValueError, match="components: 'tpu'"):
        board(components=["gpu", "tpu"])
