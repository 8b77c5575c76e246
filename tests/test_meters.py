import subprocess
import sys
import time

import pytest

from mllm_sched.harness import cpu_time, rapl
from mllm_sched.harness.cpu_time import CpuTimeMeter
from mllm_sched.harness.meters import open_meter
from mllm_sched.harness.rapl import RaplMeter
from mllm_sched.harness.reading import MeterError

RANGE_UJ = 262_143_328_850


def zone(root, name, label, energy_uj, range_uj=RANGE_UJ):
    folder = root / rapl.ZONES / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")


@pytest.fixture
def powercap(tmp_path):
    (tmp_path / rapl.ZONES / "intel-rapl").mkdir(parents=True)  # the control type itself
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 500_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    return tmp_path


def test_rapl_sums_the_packages_and_leaves_out_what_overlaps_them(powercap):
    meter = RaplMeter(powercap)
    meter.start()
    zone(powercap, "intel-rapl:0", "package-0", 3_500_000)
    zone(powercap, "intel-rapl:1", "package-1", 5_250_000)
    zone(powercap, "intel-rapl:0:0", "core", 2_000_000)
    zone(powercap, "intel-rapl:2", "psys", 99_000_000)
    assert meter.stop().energy_j == pytest.approx(2.75)
    assert meter.evidence == "measured" and "2 processor package" in meter.source


@pytest.mark.parametrize("before", [0, 200_000_000_000, RANGE_UJ - 1])
def test_rapl_survives_one_wrap_around(tmp_path, before):
    used = 100_000_000_000
    zone(tmp_path, "intel-rapl:0", "package-0", before)
    meter = RaplMeter(tmp_path)
    meter.start()
    zone(tmp_path, "intel-rapl:0", "package-0", (before + used) % RANGE_UJ)
    reading = meter.stop()
    assert reading.energy_j == pytest.approx(used / 1e6)
    assert reading.low_j <= reading.energy_j <= reading.high_j


def test_no_permission_leads_to_the_estimate_with_the_reason(powercap, monkeypatch):
    text = rapl._text

    def guarded(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return text(path)

    monkeypatch.setattr(rapl, "_text", guarded)
    meter = open_meter(powercap)
    assert meter.evidence == "estimated"
    assert "rapl: " in meter.source and "Permission denied" in meter.source
    monkeypatch.undo()
    zone(powercap, "intel-rapl:0", "package-0", "garbage")
    assert open_meter(powercap).evidence == "estimated"


@pytest.mark.parametrize("busy_s", [0.0, 1.0, 8.0])
def test_the_estimate_is_busy_and_idle_core_seconds_times_watts(monkeypatch, busy_s):
    clocks = {"process_time": iter([10.0, 10.0 + busy_s]), "perf_counter": iter([50.0, 52.0])}
    for name, ticks in clocks.items():
        monkeypatch.setattr(cpu_time.time, name, lambda ticks=ticks: next(ticks))
    monkeypatch.setattr(cpu_time, "usable_cores", lambda: 4)
    meter = CpuTimeMeter()
    meter.start()
    assert meter.stop().energy_j == pytest.approx(6 * busy_s + 0.6 * (4 * 2 - busy_s))


def test_a_meter_that_was_not_started_says_so(powercap):
    for meter in (RaplMeter(powercap), CpuTimeMeter()):
        with pytest.raises(RuntimeError, match="call start"):
            meter.stop()


SPINS = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_the_estimate_counts_the_time_of_another_process(monkeypatch):
    monkeypatch.setattr(cpu_time, "WATTS_PER_IDLE_CORE", 0.0)
    process = subprocess.Popen([sys.executable, "-c", SPINS.format(5)])
    meter = CpuTimeMeter()
    meter.pid = process.pid
    time.sleep(0.2)
    meter.start()
    time.sleep(0.3)
    reading = meter.stop()
    process.kill()
    process.wait()
    assert 0 < reading.energy_j <= cpu_time.WATTS_PER_BUSY_CORE * reading.duration_s * 1.1
    with pytest.raises(MeterError, match=f"process {process.pid} is gone"):
        meter.start()


def test_a_meter_can_be_asked_for_by_name(powercap):
    assert open_meter(powercap, "estimate").evidence == "estimated"
    assert open_meter(powercap, "rapl").evidence == "measured"
    with pytest.raises(ValueError, match="meter 'watts': expected one of ina3221, rapl"):
        open_meter(powercap, "watts")
    with pytest.raises(OSError, match="no INA3221 sensors"):
        open_meter(powercap, "ina3221")
