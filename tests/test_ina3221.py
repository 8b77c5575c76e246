"""The sensors of Jetsons as folders of files, on every layout that kernels have shown them in."""

import os

import pytest

from mllm_sched.harness.ina3221 import Ina3221Rails
from mllm_sched.harness.meters import open_meter

ORIN = {
    "1-0040": ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"],
    "1-0041": ["NC", "VDDQ_VDD2_1V8AO", "NC"],
}


def hwmon(root, chips, milliamps=1000, millivolts=5000):
    """Labels, voltages and currents; the seventh input sums shunt voltages."""
    for number, (chip, labels) in enumerate(chips.items()):
        folder = root / f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number + 3}"
        folder.mkdir(parents=True)
        for channel, label in enumerate(labels, start=1):
            (folder / f"in{channel}_label").write_text(f"{label}\n")
            (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
            (folder / f"curr{channel}_input").write_text(f"{milliamps * channel}\n")
        (folder / "in7_label").write_text("sum of shunt voltages\n")
        (folder / "in7_input").write_text("12\n")
    return root


def file_of(root, rail, what="curr"):
    for label in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/*/in*_label"):
        if label.read_text().strip() == rail:
            return label.with_name(label.name.replace("in", what, 1).replace("label", "input"))
    raise AssertionError(rail)


def test_rails_are_found_by_label_and_the_nested_one_is_not_counted(tmp_path):
    rails = Ina3221Rails(hwmon(tmp_path, ORIN))
    assert rails.names == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert rails.counted == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert rails.read() == pytest.approx([5.0, 10.0, 15.0, 10.0])
    rails.close()
    rails.close()
    meter = open_meter(tmp_path)
    assert meter.evidence == "measured"
    assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in meter.source
    meter.close()


@pytest.mark.parametrize(
    ("chips", "counted"),
    [
        ({"1-0040": ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]}, 1),
        ({"1-0040": ["GPU", "CPU", "SOC"], "1-0041": ["CV", "VDDRQ", "SYS5V"]}, 6),
    ],
    ids=["one sensor for the module", "AGX Xavier"],
)
def test_the_rails_that_make_up_a_module_are_known(tmp_path, chips, counted):
    assert len(Ina3221Rails(hwmon(tmp_path, chips)).counted) == counted


def test_unknown_rails_and_a_machine_without_any_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no INA3221 sensors"):
        Ina3221Rails(tmp_path)
    with pytest.raises(ValueError, match="VDD_A, VDD_B: it is not known which"):
        Ina3221Rails(hwmon(tmp_path, {"1-0040": ["VDD_A", "VDD_B"]}))


@pytest.mark.parametrize(
    ("text", "words"), [("-500\n", "negative reading of -500 mA"), ("garbage\n", "shows .*garbage")]
)
def test_a_broken_sensor_is_named_and_the_offset_of_a_rail_that_is_off_is_no_fault(
    tmp_path, text, words
):
    rails = Ina3221Rails(hwmon(tmp_path, ORIN))
    file_of(tmp_path, "VDD_GPU_SOC").write_text("-8\n")
    assert rails.read()[0] == pytest.approx(-0.04)
    file_of(tmp_path, "VIN_SYS_5V0").write_text(text)
    with pytest.raises(ValueError, match=f"rail VIN_SYS_5V0.*{words}"):
        rails.read()


def test_no_permission_is_told_when_it_is_opened_and_no_file_stays_open(tmp_path, monkeypatch):
    root, opened = hwmon(tmp_path, ORIN), os.open
    before = len(os.listdir("/proc/self/fd"))

    def guarded(path, *arguments, **settings):
        if "curr2" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", guarded)
    with pytest.raises(PermissionError, match="curr2_input"):
        Ina3221Rails(root)
    meter = open_meter(root)
    assert meter.evidence == "estimated" and "Permission denied" in meter.source
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before
