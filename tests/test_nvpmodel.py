import csv
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched import paths
from mllm_sched.harness.fake_jetson.board import CONFIGURATION
from mllm_sched.harness.nvpmodel import needs_reboot, parse

SMALL = """
# a comment
< PARAM TYPE=FILE NAME=TPC_POWER_GATING >
TPC_PG_MASK /sys/devices/gpu.0/tpc_pg_mask
TPC_PG_MASK_KNEXT /sys/devices/platform/gpu.0/tpc_pg_mask
<PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ   /sys/old/max_freq
MAX_FREQ_KNEXT /sys/new/max_freq

< POWER_MODEL ID=0 NAME=MAXN >
TPC_POWER_GATING TPC_PG_MASK 0
GPU MAX_FREQ -1    # no limit
< POWER_MODEL ID=1 NAME=MODE_15W >
TPC_POWER_GATING TPC_PG_MASK 248
GPU MAX_FREQ 408000000
< POWER_MODEL ID=3 NAME=MODE_50W >
TPC_POWER_GATING TPC_PG_MASK 0x0
< FAN_CONFIG DEFAULT=quiet >
FAN_PROFILE quiet 1 2 3
< PM_CONFIG DEFAULT=1 >
"""


def test_knobs_and_modes_are_read_and_only_another_mask_needs_a_reboot():
    conf = parse(SMALL)
    assert conf.knobs["GPU", "MAX_FREQ"] == ("/sys/old/max_freq", "/sys/new/max_freq")
    assert [mode.name for mode in conf.modes] == ["MAXN", "MODE_15W", "MODE_50W"]
    maxn, low, high = conf.modes
    assert low.settings["GPU", "MAX_FREQ"] == "408000000"
    assert ("GPU", "MAX_FREQ") not in high.settings
    assert needs_reboot(maxn, low) and not needs_reboot(maxn, high)


def test_the_imitated_boards_modes_are_those_published_of_an_agx_orin():
    modes = {
        mode.name.removeprefix("MODE_"): mode for mode in parse(CONFIGURATION.read_text()).modes
    }
    with (paths.PUBLISHED / "nvpmodel_agx_orin.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["module"].startswith("devkit")]
    assert set(modes) == {row["mode"] for row in rows}
    for row in rows:
        mode = modes[row["mode"]]
        assert mode.id == int(row["id"])
        assert mode.settings["TPC_POWER_GATING", "TPC_PG_MASK"] == row["tpc_pg_mask"]
        online = [mode.settings["CPU_ONLINE", f"CORE_{core}"] for core in range(12)]
        assert online.count("1") == int(row["online_cpu"])
        if row["mode"] != "MAXN":  # which has no caps
            cap_mhz = float(mode.settings["GPU", "MAX_FREQ"]) / 1e6
            assert cap_mhz == pytest.approx(float(row["gpu_max_mhz_jp6"]))
            cap_mhz = float(mode.settings["DLA0_CORE", "MAX_FREQ"]) / 1e6
            assert cap_mhz == pytest.approx(float(row["dla_core_mhz"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no < POWER_MODEL"),
        ("< POWER_MODEL ID=0 NAME=MAXN", r"line 1.*expected < SECTION"),
        ("< POWER_MODEL NAME=MAXN >", "line 1.*expected ID="),
        ("< POWER_MODEL ID=x NAME=A >", "line 1.*'x'"),
        ("< POWER_MODEL ID=0 NAME=A >\nGPU MAX_FREQ", "line 2.*knob, attribute and value"),
        ("< POWER_MODEL ID=0 NAME=A >\nGPU MAX_FREQ fast", "line 2.*'fast'"),
        ("< PARAM TYPE=FILE NAME=A >\nX", "line 2.*an attribute and a file"),
    ],
)
def test_an_error_names_the_line_and_what_was_expected(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


@given(st.text(alphabet="<> =#\nPARAM_OWEDLID0123GPU MAX_FREQ/", max_size=200))
def test_garbage_is_refused_and_never_crashes(text):
    with suppress(ValueError):
        assert parse(text).modes
