import math

import numpy as np
import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.devices import open_device
from mllm_sched.devices.calibration import sweep_trace
from mllm_sched.measurement import TableError, write_table
from mllm_sched.tasks import Task

TASK = Task("image", "tiny-clip")
MEANS = [("gpu", 15, 0.2), ("gpu", 30, 0.1), ("cpu", 15, 0.4), ("cpu", 30, 0.3)]


def table(repeats=4):
    """Two components at two power levels, each with its own repeats."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "component": component,
            "power_w": power_w,
            "latency_s": mean * (1 + 0.1 * rng.random()),
            "energy_j": 10 * mean,
        }
        for component, power_w, mean in MEANS
        for _ in range(repeats)
    ]
    facts = {"modality": "image", "encoder": "tiny-clip"}
    return pd.DataFrame(rows).assign(**facts, evidence="measured", energy_evidence="estimated")


@pytest.fixture
def trace(tmp_path):
    return f"trace:{write_table(table(), tmp_path / 'board.csv')}"


def test_the_space_is_read_off_the_table(trace):
    device = open_device(trace)
    assert [factor.name for factor in device.space.factors] == ["component", "power_w"]
    assert device.space.factor("power_w").log and len(device.space) == 4
    assert (device.evidence, device.energy_evidence) == ("measured", "estimated")


def test_every_draw_is_a_repeat_of_its_arm_by_seed(trace):
    device, again, rows = open_device(trace, seed=3), open_device(trace, seed=3), table()
    arm = device.space.arm(component="cpu", power_w=15)
    repeats = rows.query("component == 'cpu' and power_w == 15")["latency_s"]
    drawn = [device.run(arm, TASK).latency_s for _ in range(200)]
    assert drawn == [again.run(arm, TASK).latency_s for _ in range(200)]
    assert sorted(set(drawn)) == pytest.approx(sorted(repeats))
    assert device.expected(arm, TASK).latency_s == pytest.approx(repeats.mean())


def test_a_summary_is_scattered_as_its_sd_says(tmp_path):
    rows = table(repeats=1).assign(latency_sd_s=0.02, energy_sd_j=0.1)
    device = open_device(f"trace:{write_table(rows, tmp_path / 's.csv')}")
    arm = device.space[0]
    drawn = np.array([device.run(arm, TASK).latency_s for _ in range(4000)])
    assert drawn.mean() == pytest.approx(device.expected(arm, TASK).latency_s, rel=0.01)
    assert drawn.std() == pytest.approx(0.02, rel=0.1)


def test_a_trace_that_lacks_arms_names_them(tmp_path):
    rows = table().query("not (component == 'cpu' and power_w == 30)")
    path = write_table(rows, tmp_path / "holes.csv")
    with pytest.raises(TableError, match="lacks 1 of 4 arms: component=cpu, power_w=30"):
        open_device(f"trace:{path}")


def test_failed_repeats_are_replayed_as_failures(tmp_path):
    rows = table()
    gone = (rows["component"] == "cpu") & (rows["power_w"] == 30)
    rows.loc[gone, ["latency_s", "energy_j"]] = math.nan
    rows["failed"] = np.where(gone, "out of memory", "")
    device = open_device(f"trace:{write_table(rows, tmp_path / 'f.csv')}")
    arm = device.space.arm(component="cpu", power_w=30)
    assert device.run(arm, TASK).failed == "out of memory"
    assert device.expected(arm, TASK).failed == "every repeat failed"
    assert device.expected_all(TASK).latency_s[arm.index] == math.inf


def test_an_encoder_that_was_not_measured_lists_those_that_were(trace):
    device = open_device(trace)
    with pytest.raises(ValueError, match=r"'whisper-small' is not in trace:.*tiny-clip"):
        device.run(device.space[0], Task("audio", "whisper-small"))
    with pytest.raises(ValueError, match="takes image, not audio"):
        device.run(device.space[0], Task("audio", "tiny-clip"))


def test_a_table_may_not_mix_evidence(tmp_path):
    rows = table()
    rows.loc[0, "evidence"] = "simulated"
    with pytest.raises(TableError, match="mixes simulated, measured; split the table"):
        open_device(f"trace:{write_table(rows, tmp_path / 'm.csv')}")


def test_the_committed_sweep_is_what_the_published_table_says():
    path = paths.PUBLISHED / "orin_sweep_trace.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), sweep_trace(), check_dtype=False)
    device = open_device(f"trace:{path}")
    assert device.evidence == "published" and len(device.space) == 4
    arm = device.space.arm(power_w=50)
    expected = device.expected(arm, Task("image", "fcn_resnet50"))
    assert (expected.latency_s, expected.energy_j) == (0.0585, 1.563)
