from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.harness.fake_jetson.board import configuration
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


def test_knobs_modes_and_the_default_are_read():
    conf = parse(SMALL)
    assert conf.knobs["GPU", "MAX_FREQ"] == ("/sys/old/max_freq", "/sys/new/max_freq")
    assert [mode.name for mode in conf.modes] == ["MAXN", "MODE_15W", "MODE_50W"]
    assert conf.mode(1).settings["GPU", "MAX_FREQ"] == "408000000"
    assert ("GPU", "MAX_FREQ") not in conf.mode(3).settings


@pytest.mark.parametrize("wanted", [1, "15W", "MODE_15W", "mode_15w"])
def test_a_mode_is_found_by_id_and_by_name(wanted):
    assert parse(SMALL).mode(wanted).id == 1


def test_an_unknown_mode_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'20W': the board has 0 \(MAXN\), 1 \(MODE_15W\)"):
        parse(SMALL).mode("20W")


def test_only_another_mask_needs_a_reboot():
    conf = parse(SMALL)
    assert needs_reboot(conf.mode("MAXN"), conf.mode("15W"))
    assert not needs_reboot(conf.mode("MAXN"), conf.mode("50W"))


def test_the_modes_of_an_agx_orin():
    conf = parse(configuration())
    masks = {mode.name: mode.settings["TPC_POWER_GATING", "TPC_PG_MASK"] for mode in conf.modes}
    assert masks == {"MAXN": "0", "MODE_15W": "248", "MODE_30W": "240", "MODE_50W": "0"}
    assert conf.mode("30W").settings["GPU", "MAX_FREQ"] == "612000000"
    assert conf.mode("15W").settings["CPU_ONLINE", "CORE_4"] == "0"
    assert ("CPU_A78_1", "MAX_FREQ") not in conf.mode("15W").settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no < POWER_MODEL"),
        ("< POWER_MODEL ID=0 NAME=MAXN", r"line 1.*expected < SECTION"),
        ("< POWER_MODEL NAME=MAXN >", "line 1.*expected ID="),
        ("< POWER_MODEL ID=x NAME=A >", "line 1.*whole number, got 'x'"),
        ("< POWER_MODEL ID=0 NAME=A >\nGPU MAX_FREQ", "line 2.*knob, attribute and value"),
        ("< POWER_MODEL ID=0 NAME=A >\nGPU MAX_FREQ fast", "line 2.*whole number, got 'fast'"),
        ("< PARAM TYPE=FILE NAME=A >\nX", "line 2.*an attribute and a file"),
    ],
)
def test_an_error_names_the_line_and_what_was_expected(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


names = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.endswith("_KNEXT")
)
knobs = st.dictionaries(st.tuples(names, st.just("MAX_FREQ")), st.integers(-1, 10**9), max_size=4)


@given(st.lists(st.tuples(names, knobs), min_size=1, max_size=4))
def test_what_was_written_is_read(modes):
    lines = []
    for param in {param for _, settings in modes for param, _ in settings}:
        lines += [f"< PARAM TYPE=CLOCK NAME={param} >", f"MAX_FREQ /sys/{param}/max_freq"]
    for number, (name, settings) in enumerate(modes):
        lines.append(f"<POWER_MODEL  ID={number}  NAME={name}>")
        lines += [
            f"{param}  {attribute}\t{value}" for (param, attribute), value in settings.items()
        ]
    conf = parse("\n".join(lines))
    assert [(mode.name, dict(mode.settings)) for mode in conf.modes] == [
        (name, {knob: str(value) for knob, value in settings.items()}) for name, settings in modes
    ]


@given(st.text(alphabet="<> =#\nPARAM_OWEDLID0123GPU MAX_FREQ/", max_size=200))
def test_garbage_is_refused_and_never_crashes(text):
    with suppress(ValueError):
        assert parse(text).modes
