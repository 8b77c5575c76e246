"""An imitated AGX Orin developer kit: a folder laid out as kernels do, with sensors fed live.

``python -m mllm_sched.harness.fake_jetson.board`` feeds the sensors until its standard input ends:
a process of its own, so that neither side's work disturbs the other's clock.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mllm_sched.harness.nvpmodel import parse

MARKER = "IMITATION"
CONFIGURATION = Path(__file__).with_name("nvpmodel.conf")
PROGRAMS = {
    "nvpmodel": "usr/sbin/nvpmodel",
    "jetson_clocks": "usr/bin/jetson_clocks",
    "tegrastats": "usr/bin/tegrastats",
}
RELEASES = {5: "R35", 6: "R36"}

# Chips, their rails, and the voltage of each in millivolts (a usual supply of 19 V; assumed). The
# memory's rail is fed from the 5 V one.
CHIPS = {
    "1-0040": {"VDD_GPU_SOC": 19000, "VDD_CPU_CV": 19000, "VIN_SYS_5V0": 5000},
    "1-0041": {"VDDQ_VDD2_1V8AO": 5000},
}
FIRST_CHANNEL = {"1-0040": 1, "1-0041": 2}  # the second chip's outer channels are disabled
CPU_STEPS_KHZ = [*range(729_600, 2_201_600, 76_800), 2_201_600]
GPU_STEPS_HZ = [*range(306_000_000, 1_300_500_000, 102_000_000), 1_300_500_000]
HIGHEST_HZ = {"EMC": 3199000000, "DLA0_CORE": 1600000000, "DLA1_CORE": 1600000000}
ZONES = ("cpu", "gpu", "soc0", "tj")


@dataclass(frozen=True)
class Pulses:
    """``top_w`` for the first ``width_s`` of every period, ``base_w`` for the rest.

    Square waves, spikes, mostly idle and constant loads differ only in these numbers.
    """

    base_w: float
    top_w: float
    period_s: float = 1.0
    width_s: float = 0.5

    def power_w(self, t_s: Any) -> Any:
        """Watts at a time, in seconds; also of arrays of times."""
        return self.base_w + (self.top_w - self.base_w) * (t_s % self.period_s < self.width_s)

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two times, exactly."""
        high_s = self._high_s(end_s) - self._high_s(start_s)
        return self.base_w * (end_s - start_s) + (self.top_w - self.base_w) * high_s

    def _high_s(self, t_s: float) -> float:
        periods, rest_s = divmod(t_s, self.period_s)
        return periods * self.width_s + min(rest_s, self.width_s)


@dataclass(frozen=True)
class Ramp:
    """From ``low_w`` to ``high_w`` over every period, and back at once."""

    low_w: float
    high_w: float
    period_s: float

    def power_w(self, t_s: Any) -> Any:
        """Watts at a time, in seconds; also of arrays of times."""
        return self.low_w + (self.high_w - self.low_w) * (t_s % self.period_s) / self.period_s

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two times, exactly."""
        return self._until(end_s) - self._until(start_s)

    def _until(self, t_s: float) -> float:
        periods, rest_s = divmod(t_s, self.period_s)
        slope = (self.high_w - self.low_w) / self.period_s
        mean_w = (self.low_w + self.high_w) / 2
        return periods * self.period_s * mean_w + self.low_w * rest_s + slope * rest_s**2 / 2


Waveform = Pulses | Ramp


MODULE_RAILS = tuple(CHIPS["1-0040"])  # the other chip's rail lies within one of these
USUAL: Mapping[str, Waveform] = {
    "VDD_GPU_SOC": Pulses(3.0, 9.0, 0.7, 0.3),
    "VDD_CPU_CV": Ramp(1.5, 3.5, 5.0),
    "VIN_SYS_5V0": Pulses(3.5, 3.5),
    "VDDQ_VDD2_1V8AO": Pulses(0.8, 0.8),
}


class FakeJetson:
    """An imitated AGX Orin developer kit in a folder; give its ``root`` where the board's "/" is.

    Parameters
    ----------
    folder
        Where; made if it is not there.
    waveforms
        Power of each rail over ``time.monotonic()``; rails left out follow ``USUAL``.
    jetpack
        5 or 6, whose kernels show things in different places.
    """

    def __init__(
        self,
        folder: str | Path,
        waveforms: Mapping[str, Waveform] | None = None,
        *,
        jetpack: int = 6,
    ) -> None:
        self.root = Path(folder)
        self.waveforms = {**USUAL, **(waveforms or {})}
        self._feeder: subprocess.Popen[str] | None = None
        _lay_out(self.root, jetpack)
        self._sensors = _lay_out_sensors(self.root)

    def start(self) -> None:
        """Begin to feed the sensors; they show nothing before."""
        self._feeder = subprocess.Popen(
            [sys.executable, "-m", "mllm_sched.harness.fake_jetson.board"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the side that feeds
        )
        waveforms = {name: asdict(waveform) for name, waveform in self.waveforms.items()}
        self._order({name: [*self._sensors[name], waveforms[name]] for name in self._sensors})

    def stop(self) -> None:
        """End the feeder; files stay as they are. Stopping twice does nothing."""
        if self._feeder is None:
            return
        self._feeder.communicate()
        self._feeder = None

    def __enter__(self) -> FakeJetson:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def energy_j(self, start_s: float, end_s: float, rails: Iterable[str] = MODULE_RAILS) -> float:
        """What the rails really used between two times of ``time.monotonic()``, joules."""
        return sum(self.waveforms[rail].energy_j(start_s, end_s) for rail in rails)

    def show_current(self, rail: str, milliamperes: int | None) -> None:
        """Have a sensor show one value, whatever its rail does; None: live again."""
        self._order({"rail": rail, "current_ma": milliamperes})

    def vanish(self, rail: str) -> None:
        """Take a sensor away, as a driver that lost its device does."""
        self._order({"rail": rail, "gone": True})

    def bring_back(self, rail: str) -> None:
        """Show a sensor again that vanished."""
        self._order({"rail": rail, "gone": False})

    def _order(self, order: Mapping[str, Any]) -> None:
        """Send the feeder a line of JSON, and wait until it has done it."""
        if self._feeder is None or self._feeder.stdin is None or self._feeder.stdout is None:
            raise RuntimeError("the board is not fed; call start() first")
        print(json.dumps(order), file=self._feeder.stdin, flush=True)
        if not self._feeder.stdout.readline():
            raise RuntimeError("the feeder ended")


def _lay_out(root: Path, jetpack: int) -> None:
    """Make all files but those of the sensors; the board is then in MAXN."""
    _put(root, MARKER, "This is no board but an imitation of one: what it shows is made up.")
    _put(root, "proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    _put(root, "proc/sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000001")
    _put(root, "etc/nv_tegra_release", f"# {RELEASES[jetpack]} (release), REVISION: 0.0")
    _put(root, "etc/nvpmodel.conf", CONFIGURATION.read_text().rstrip())
    _put(root, "var/lib/nvpmodel/status", "pmode:0000")
    _put(root, "sys/kernel/debug/bpmp/debug/clk/emc/rate", "3199000000")
    _put(root, "sys/devices/platform/pwm-fan/hwmon/hwmon1/pwm1", "60")
    _put(root, "sys/class/hwmon/hwmon2/name", "soctherm_oc")
    for event in (1, 2, 3):
        _put(root, f"sys/class/hwmon/hwmon2/oc{event}_event_cnt", "0")
    for number, zone in enumerate(ZONES):
        name = f"{zone}-thermal" if jetpack == 6 else f"{zone.upper()}-therm"
        _put(root, f"sys/class/thermal/thermal_zone{number}/type", name)
        _put(root, f"sys/class/thermal/thermal_zone{number}/temp", "45000")
    _lay_out_clocks(root, jetpack)
    for name, place in PROGRAMS.items():
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("programs") / name, target)
        target.chmod(0o755)


def _lay_out_sensors(root: Path) -> dict[str, tuple[str, float]]:
    """The file of each rail's current, and the rail's volts."""
    found = {}
    for number, (chip, rails) in enumerate(CHIPS.items()):
        folder = root / f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number + 3}"
        for channel, (rail, millivolts) in enumerate(rails.items(), FIRST_CHANNEL[chip]):
            _put(folder, f"in{channel}_label", rail)
            _put(folder, f"in{channel}_input", str(millivolts))
            found[rail] = (str(folder / f"curr{channel}_input"), millivolts / 1000)
        _put(folder, "in7_label", "sum of shunt voltages")
        _put(folder, "in7_input", "12")
    return found


def _lay_out_clocks(root: Path, jetpack: int) -> None:
    """The files that the configuration names, where this kernel has them, unlimited."""
    for (name, attribute), files in parse(CONFIGURATION.read_text()).knobs.items():
        steps = GPU_STEPS_HZ if name == "GPU" else CPU_STEPS_KHZ
        shown = {
            "FREQ_TABLE": " ".join(map(str, steps)),
            "MIN_FREQ": steps[0],
            "MAX_FREQ": HIGHEST_HZ.get(name, steps[-1]),
            "TPC_PG_MASK": 0,
        }
        default = "auto" if "POWER_CONTROL" in name else 1
        file = files[-1] if jetpack == 6 else files[0]
        _put(root, file.lstrip("/"), str(shown.get(attribute, default)))


def _put(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


# 40 uV of the sensor over the board's shunts of 2 milliohms. Noise of about one step lies on top
# (assumed), and means are right.
STEP_MA = 20
FEED_S = 0.002  # between two changes of a sensor; a real one takes about 150 readings a second


class _Sensor:
    """The file of one rail's current, written in place: who keeps it open sees what changes."""

    def __init__(self, path: str, volts: float, waveform: Mapping[str, float]) -> None:
        self.path, self.volts = path, volts
        self.waveform = Pulses(**waveform) if "base_w" in waveform else Ramp(**waveform)
        self.fixed_ma: int | None = None
        self.file: int | None = None
        self.vanish(False)

    def vanish(self, gone: bool) -> None:
        """Take the file away, or bring it back. Emptied first: an open reader reads nothing."""
        if not gone:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT)
            self.feed(time.monotonic())
        elif self.file is not None:
            os.ftruncate(self.file, 0)
            os.close(self.file)
            os.unlink(self.path)
            self.file = None

    def feed(self, now_s: float) -> None:
        """Write what the sensor shows now, in as many characters as ever."""
        if self.file is None:
            return
        shown = self.fixed_ma
        if shown is None:
            exact = 1000 * self.waveform.power_w(now_s) / self.volts / STEP_MA
            shown = STEP_MA * math.floor(exact + random.random() + random.uniform(-1, 1))
        os.pwrite(self.file, b"%7d\n" % shown, 0)

    def obey(self, order: Mapping[str, Any]) -> None:
        """Carry out an order of ``FakeJetson``."""
        if "gone" in order:
            self.vanish(order["gone"])
        else:
            self.fixed_ma = order["current_ma"]


def _feed() -> None:
    """Feed the sensors that the first line of standard input describes, and obey the others."""
    random.seed(0)
    sensors = {name: _Sensor(*facts) for name, facts in json.loads(sys.stdin.readline()).items()}
    print("feeding", flush=True)
    due_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        for sensor in sensors.values():
            sensor.feed(now_s)
        due_s = max(due_s + FEED_S, now_s)
        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, due_s - time.monotonic()))
        if ready:
            if not (line := sys.stdin.readline()):
                return
            order = json.loads(line)
            sensors[order["rail"]].obey(order)
            print("done", flush=True)


if __name__ == "__main__":
    _feed()
