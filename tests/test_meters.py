import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    (tmp_path / rapl.ZONES / "intel-rapl").mkdir(
        parents=True
    )  # the control type itself, as the kernel shows it
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


@given(before=st.integers(0, RANGE_UJ - 1), used=st.integers(0, RANGE_UJ - 1))
def test_rapl_survives_one_wrap_around(tmp_path_factory, before, used):
    root = tmp_path_factory.mktemp("powercap")
    zone(root, "intel-rapl:0", "package-0", before)
    meter = RaplMeter(root)
    meter.start()
    zone(root, "intel-rapl:0", "package-0", (before + used) % RANGE_UJ)
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


def test_a_counter_that_is_no_number_leads_to_the_estimate(powercap):
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


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def no_idle_power(monkeypatch):
    monkeypatch.setattr(cpu_time, "WATTS_PER_IDLE_CORE", 0.0)


@pytest.mark.usefixtures("no_idle_power")
def test_the_estimate_sees_the_work_of_all_threads():
    meter = CpuTimeMeter()
    meter.start()
    threads = [threading.Thread(target=spin, args=(0.05,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.stop().energy_j >= 0.09 * cpu_time.WATTS_PER_BUSY_CORE


def test_a_meter_that_was_not_started_says_so(powercap):
    for meter in (RaplMeter(powercap), CpuTimeMeter()):
        with pytest.raises(RuntimeError, match="call start"):
            meter.stop()


SPINS = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


@pytest.mark.usefixtures("no_idle_power")
def test_the_estimate_counts_the_time_of_another_process():
    process = subprocess.Popen([sys.executable, "-c", SPINS.format(5)])
    meter = CpuTimeMeter()
    meter.pid = process.pid
    time.sleep(0.3)
    meter.start()
    time.sleep(0.5)
    reading = meter.stop()
    process.kill()
    process.wait()
    assert 0 < reading.energy_j <= cpu_time.WATTS_PER_BUSY_CORE * reading.duration_s * 1.1


def test_a_process_that_died_is_told():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    meter = CpuTimeMeter()
    meter.pid = process.pid
    with pytest.raises(MeterError, match=f"process {process.pid} is gone"):
        meter.start()


def test_a_meter_can_be_asked_for_by_name(powercap):
    assert open_meter(powercap, "estimate").evidence == "estimated"
    assert open_meter(powercap, "rapl").evidence == "measured"
    with pytest.raises(ValueError, match="meter 'watts': expected one of ina3221, rapl"):
        open_meter(powercap, "watts")
    with pytest.raises(OSError, match="no INA3221 sensors"):
        open_meter(powercap, "ina3221")
