import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.harness.fake_jetson.board import FakeJetson, Pulses
from mllm_sched.harness.tegrastats import mean_power, parse

SHOWN_S = 2.0
JETPACK_5 = (  # of one AGX Orin, but for the rail below zero, which is another's
    "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) "
    "CPU [0%@729,0%@729] EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 729 "
    "VIC_FREQ 729 APE 233 CV0@-256C CPU@43.5C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV -398mW/-398mW "
    "VIN_SYS_5V0 3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW"
)
XAVIER = (
    "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@32.5C "
    "GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889"
)


@pytest.mark.parametrize(
    ("line", "power_w"),
    [
        (
            JETPACK_5,
            {
                "VDD_GPU_SOC": 4.788,
                "VDD_CPU_CV": -0.398,
                "VIN_SYS_5V0": 3.842,
                "VDDQ_VDD2_1V8AO": 0.707,
            },
        ),
        (XAVIER, {"GPU": 0, "CPU": 0.216, "SOC": 0.864, "CV": 0, "VDDRQ": 0.144, "SYS5V": 1.889}),
        ("RAM 1/2MB", {}),
    ],
    ids=["a rail below zero", "short names, without units", "no rails"],
)
def test_every_rail_of_a_line_is_read(line, power_w):
    assert parse(line) == power_w


@given(st.text(max_size=80).filter(lambda text: "RAM" not in text))
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="no line of tegrastats"):
        parse(text)


def test_the_programs_own_readings_agree_with_the_waveforms(tmp_path):
    with FakeJetson(tmp_path, {"VDD_CPU_CV": Pulses(6.0, 6.0)}) as board:
        began = time.monotonic()
        shown = mean_power(board.root, SHOWN_S, interval_ms=20)
        truth_j = board.energy_j(began, began + SHOWN_S, ["VDD_CPU_CV"])
    assert shown["VDD_CPU_CV"] == pytest.approx(truth_j / SHOWN_S, rel=0.05)
    assert set(shown) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (["permission denied"], "shows no rail; it said 'permission denied'"),
        (["RAM 1/2MB VDD_IN 4000mW/4000mW", "crashed"], r"ended after \S+ s of 20; .*'crashed'"),
    ],
)
def test_a_program_that_fails_or_ends_early_is_told_and_not_averaged(tmp_path, printed, words):
    with pytest.raises(OSError, match="tegrastats"):
        mean_power(tmp_path, 0.1)
    program = tmp_path / "usr/bin/tegrastats"
    program.parent.mkdir(parents=True)
    program.write_text("\n".join(["#!/bin/sh", *(f"echo {line}" for line in printed)]))
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match=words):
        mean_power(tmp_path, 20.0)
