import itertools
import math

import numpy as np
import pytest

from mllm_sched.harness import window as harness
from mllm_sched.harness.reading import MeterError, Reading
from mllm_sched.harness.subprocess_worker import Calls, pooled_sd_s
from mllm_sched.harness.thermals import Thermals
from mllm_sched.harness.window import (
    Plan,
    Window,
    latency_of,
    measure,
    warm_up,
    windows_needed,
)


class Machine:
    """A clock, an encoder and a meter that agree: 20 W busy, 8 W idle, 0.1 s a task."""

    evidence, source, min_window_s = "measured", "a test", 2.0

    def __init__(self, scatter=0.0, half_w=0.0, **reading):
        self.now_s, self.busy_s, self.windows = 0.0, 0.0, []
        self.scatter, self.half_w, self.reading = scatter, half_w, reading
        self.rng = np.random.default_rng(0)
        self.speeds = itertools.repeat(1.0)

    def work(self, seconds):
        taken = []
        speed = next(self.speeds) * (1 + self.scatter * self.rng.standard_normal())
        while not taken or sum(taken) < seconds:
            taken.append(0.1 * speed)
        self.sleep(sum(taken))
        self.busy_s += sum(taken)
        return Calls.of(taken)

    def sleep(self, seconds):
        self.now_s += seconds

    def start(self):
        self.began = self.now_s, self.busy_s

    def stop(self):
        took_s, busy_s = self.now_s - self.began[0], self.busy_s - self.began[1]
        energy_j, half_j = 8 * took_s + 12 * busy_s, self.half_w * took_s
        facts = {"samples": 100, "rate_hz": 100.0, **self.reading}
        reading = Reading(energy_j, energy_j - half_j, energy_j + half_j, took_s, **facts)
        self.windows.append(reading)
        return reading

    def close(self):
        pass


@pytest.fixture
def machine(monkeypatch):
    def made(**settings):
        machine = Machine(**settings)
        monkeypatch.setattr(harness.time, "sleep", machine.sleep)
        monkeypatch.setattr(harness.time, "monotonic", lambda: machine.now_s)
        return machine

    return made


@pytest.fixture
def cool(tmp_path):
    return Thermals(tmp_path)


@pytest.mark.parametrize("items", [1, 4])
def test_total_and_idle_subtracted_energy_of_tasks_that_share_calls(machine, cool, items):
    here = machine()
    result = measure(here.work, here, cool, Plan(window_s=0.5), items)
    busy = [reading for reading in here.windows if reading.power_w > 10]
    assert min(reading.duration_s for reading in busy) >= here.min_window_s
    assert result.latency_s.mean == pytest.approx(0.1)
    assert result.energy_j.mean == pytest.approx(2.0 / items)  # 20 W for 0.1 s
    assert result.marginal_j.mean == pytest.approx(1.2 / items)
    assert result.idle_w == pytest.approx(8)
    assert result.windows == 4 and result.tasks == pytest.approx(80 * items, abs=4 * items)
    assert math.isnan(result.temperature_start_c) and not result.throttled
    result = measure(here.work, here, cool, Plan(idle_s=0), items)
    assert math.isnan(result.marginal_j.mean) and math.isnan(result.idle_w)
    assert result.energy_j.mean == pytest.approx(2.0 / items)


def test_a_restless_arm_gets_more_windows_until_its_mean_is_known(machine, cool):
    plan, calm = Plan(target=0.02, max_windows=40), machine(scatter=0.001)
    assert measure(calm.work, calm, cool, plan).windows == plan.windows
    restless = machine(scatter=0.03)
    result = measure(restless.work, restless, cool, plan)
    assert plan.windows < result.windows < 40
    assert result.latency_s.relative <= 0.02 and result.energy_j.relative <= 0.02
    wild = machine(scatter=0.2)
    result = measure(wild.work, wild, cool, Plan(target=0.01, max_windows=5))
    assert result.windows == 5
    assert any("target of 1.0% missed after 5 windows" in note for note in result.notes)


def test_what_the_meter_cannot_see_counts_in_the_interval(machine, cool):
    here = machine(half_w=0.5)
    result = measure(here.work, here, cool, Plan(target=0.001, max_windows=4))
    assert result.energy_j.half == pytest.approx(0.5 * 0.1 / math.sqrt(4), rel=0.1)
    assert result.marginal_j.half > result.energy_j.half


@pytest.mark.parametrize("scatter", [0.005, 0.02, 0.05])
def test_stopping_when_it_is_known_well_enough_does_not_spoil_the_interval(scatter):
    """The usual rule, to stop once the interval looks narrow, covers only nine times of ten."""
    rng, covered, counts = np.random.default_rng(1), 0, set()

    def window():
        took_s = 0.1 * (1 + scatter * rng.standard_normal())
        return Window(Reading(20 * took_s, 20 * took_s, 20 * took_s, took_s), Calls.of([took_s]))

    for _ in range(1000):
        windows = [window() for _ in range(3)]
        wanted = min(10, windows_needed(windows, 0.02))
        windows += [window() for _ in range(wanted - 3)]
        counts.add(len(windows))
        interval = latency_of(windows, 3)
        covered += abs(interval.mean - 0.1) <= interval.half
    assert covered >= 930
    assert len(counts) > 1


def test_warm_up_lasts_until_tasks_take_the_same_time(machine, cool):
    here = machine()
    here.speeds = itertools.chain([3.0, 2.0, 1.5, 1.2], itertools.repeat(1.0))
    seconds, steady = warm_up(here.work, 20.0)
    assert steady and seconds < 5
    here.speeds = itertools.cycle([1.0, 2.0])
    seconds, steady = warm_up(here.work, 6.0)
    assert not steady and seconds == pytest.approx(6, abs=1)
    assert any("not steady" in note for note in measure(here.work, here, cool, Plan()).notes)


@pytest.mark.parametrize("where", ["in a call", "after the calls", "in the sampling"])
def test_a_window_with_a_pause_is_measured_again(machine, cool, where):
    here = machine(samples=100 if where == "in the sampling" else 0)
    work, pauses = here.work, iter([0, 0, 0, 0, 2.0])

    def paused(seconds):
        calls, pause_s = work(seconds), next(pauses, 0)
        if where == "in the sampling":
            here.reading["longest_gap_s"] = pause_s
            return calls
        here.sleep(pause_s)
        latencies = [calls.mean_s] * calls.count
        latencies[-1] += pause_s
        return Calls.of(latencies) if where == "in a call" else calls

    result = measure(paused, here, cool, Plan())
    assert any("measured again: 1" in note for note in result.notes)
    assert result.latency_s.mean == pytest.approx(0.1)
    assert result.energy_j.mean == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"unmoved_w": {"CPU": 1.234}}, r"rail CPU is stuck at 1\.234 W: 600 readings"),
        ({"longest_gap_s": 3.2}, r"4 windows had pauses, the last of 3\.1 s.*suspended"),
    ],
)
def test_what_no_working_meter_shows_ends_the_arm(machine, cool, shown, words):
    here = machine(**shown)
    with pytest.raises(MeterError, match=words):
        measure(here.work, here, cool, Plan())


def test_the_pooled_scatter_is_that_of_all_calls_together():
    windows = [[0.1, 0.3, 0.2], [4.0], [0.5, 0.5]]
    everything = [latency for window in windows for latency in window]
    pooled = pooled_sd_s([Calls.of(window) for window in windows])
    assert pooled == pytest.approx(np.std(everything, ddof=1))
    assert pooled_sd_s([Calls.of([0.2])]) == 0


def put(root, name, value):
    file = root / "sys/class" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


def test_it_waits_until_the_hottest_zone_is_cool_but_not_for_ever(tmp_path, monkeypatch):
    for number, shown in enumerate([60000, 21250, ""]):  # without power one cannot be read
        put(tmp_path, f"thermal/thermal_zone{number}/temp", shown)
    thermals, now = Thermals(tmp_path), [0.0]
    assert thermals.hottest_c() == 60

    def sleep(seconds):
        now[0] += seconds
        put(tmp_path, "thermal/thermal_zone0/temp", 60000 - int(1000 * now[0]))

    monkeypatch.setattr("mllm_sched.harness.thermals.time.sleep", sleep)
    monkeypatch.setattr("mllm_sched.harness.thermals.time.monotonic", lambda: now[0])
    assert thermals.cool_down(50.0, at_most_s=60) == pytest.approx(10)
    assert thermals.cool_down(20.0, at_most_s=5) == pytest.approx(5)
    assert Thermals(tmp_path / "none").cool_down(50.0, at_most_s=60) == 0


def test_over_current_events_and_passive_cooling_mark_a_throttled_window(tmp_path, machine):
    counts = itertools.count(4)
    put(tmp_path, "hwmon/hwmon1/oc1_event_cnt", next(counts))
    for number, kind in enumerate(["pwm-fan", "cpufreq-cpu0"]):
        put(tmp_path, f"thermal/cooling_device{number}/type", kind)
        put(tmp_path, f"thermal/cooling_device{number}/cur_state", 0)
    thermals = Thermals(tmp_path)
    assert not thermals.throttled_since(4)
    put(tmp_path, "thermal/cooling_device0/cur_state", 2)
    assert not thermals.throttled_since(4)  # a fan cools without holding anything back
    put(tmp_path, "thermal/cooling_device1/cur_state", 1)
    assert thermals.throttled_since(4)
    put(tmp_path, "thermal/cooling_device1/cur_state", 0)
    here = machine()
    work = here.work

    def throttling(seconds):
        put(tmp_path, "hwmon/hwmon1/oc1_event_cnt", next(counts))
        return work(seconds)

    assert measure(throttling, here, thermals, Plan()).throttled


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"windows": 1}, "one window cannot tell how it scatters"),
        ({"windows": 5, "max_windows": 4}, "max_windows=4"),
        ({"target": 0}, "target=0"),
        ({"idle_s": -1}, "idle_s=-1"),
        ({"window_s": math.nan}, "window_s=nan"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Plan(**settings)
