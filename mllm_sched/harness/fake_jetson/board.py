"""An imitated AGX Orin developer kit: a folder laid out as kernels do, with sensors fed live."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from mllm_sched import paths
from mllm_sched.harness.fake_jetson.waveforms import Pulses, Ramp, Waveform

MARKER = "IMITATION"
PROGRAMS = {
    "nvpmodel": "usr/sbin/nvpmodel",
    "jetson_clocks": "usr/bin/jetson_clocks",
    "tegrastats": "usr/bin/tegrastats",
}
RELEASES = {4: "R32", 5: "R35", 6: "R36"}

# Chips, their rails, and the voltage of each in millivolts (a usual supply of 19 V; assumed). The
# memory's rail is fed from the 5 V one.
CHIPS = {
    "1-0040": {"VDD_GPU_SOC": 19000, "VDD_CPU_CV": 19000, "VIN_SYS_5V0": 5000},
    "1-0041": {"VDDQ_VDD2_1V8AO": 5000},
}
FIRST_CHANNEL = {"1-0040": 1, "1-0041": 2}  # the second chip's outer channels are disabled
CPU_STEPS_KHZ = [*range(729_600, 2_201_600, 76_800), 2_201_600]
GPU_STEPS_HZ = [*range(306_000_000, 1_300_500_000, 102_000_000), 1_300_500_000]
MODULE = "devkit_p3701-0000_and_64GB_p3701-0005"
CORES = 12
CLUSTERS = (0, 4, 8)  # first core of each
GPU = {
    5: "/sys/devices/17000000.ga10b/devfreq/17000000.ga10b",
    6: "/sys/devices/platform/17000000.gpu/devfreq_dev",
}
# The mode keeps the GPU awake while its clocks are set: two knobs, one file.
POWER_ON = ("GPU_POWER_CONTROL_ENABLE", "GPU_PWR_CNTL_EN", "on")
POWER_AUTO = ("GPU_POWER_CONTROL_DISABLE", "GPU_PWR_CNTL_DIS", "auto")
EMC_MHZ = "3199"  # its highest; modes that allow it say -1
ZONES = ("cpu", "gpu", "soc0", "tj")

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
        4, 5 or 6, whose kernels show things in different places.
    feed_hz
        How often the sensors change; a real one takes about 150 readings a second.
    seed
        Of the sensors' noise.

    Examples
    --------
    >>> import tempfile, time
    >>> from mllm_sched.harness.meters import open_meter
    >>> with tempfile.TemporaryDirectory() as folder, FakeJetson(folder) as board:
    ...     meter = open_meter(board.root)
    ...     began = time.monotonic()
    ...     meter.start()
    ...     time.sleep(0.5)
    ...     reading = meter.stop()
    ...     truth = board.energy_j(began, began + reading.duration_s)
    >>> reading.low_j <= truth <= reading.high_j
    True
    """

    def __init__(
        self,
        folder: str | Path,
        waveforms: Mapping[str, Waveform] | None = None,
        *,
        jetpack: int = 6,
        feed_hz: float = 500.0,
        seed: int = 0,
    ) -> None:
        self.root = Path(folder)
        self.waveforms = {**USUAL, **(waveforms or {})}
        self._settings = {"seed": seed, "period_s": 1 / feed_hz}
        self._feeder: subprocess.Popen[str] | None = None
        _lay_out(self.root, jetpack)
        self._sensors = _sensor_files(self.root, jetpack)

    def start(self) -> None:
        """Begin to feed the sensors; they show nothing before."""
        rails = {
            name: {
                "path": str(path),
                "milliwatts": milliwatts,
                "millivolts": millivolts,
                "waveform": asdict(self.waveforms[name]),
            }
            for name, (path, milliwatts, millivolts) in self._sensors.items()
        }
        self._feeder = subprocess.Popen(
            [sys.executable, "-m", "mllm_sched.harness.fake_jetson.feeder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the side that feeds
        )
        self._order({**self._settings, "rails": rails})

    def stop(self) -> None:
        """End the feeder; files stay as they are. Stopping twice does nothing."""
        if self._feeder is None:
            return
        self._feeder.communicate()
        self._feeder = None

    def __enter__(self) -> FakeJetson:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
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

    def heat(self, celsius: float, zone: str = "tj") -> None:
        """Set the temperature of a thermal zone: ``cpu``, ``gpu``, ``soc0`` or ``tj``."""
        folder = self.root / f"sys/class/thermal/thermal_zone{ZONES.index(zone)}"
        (folder / "temp").write_text(f"{round(1000 * celsius)}\n")

    def over_current(self) -> None:
        """Count one over-current event: the board held itself back."""
        counter = self.root / "sys/class/hwmon/hwmon2/oc1_event_cnt"
        counter.write_text(f"{int(counter.read_text()) + 1}\n")

    def _order(self, order: Mapping[str, Any]) -> None:
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
    _put(root, "etc/nvpmodel.conf", configuration())
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


def _sensor_files(root: Path, jetpack: int) -> dict[str, tuple[Path, bool, int]]:
    """By rail: the file that changes, whether it shows milliwatts, and the rail's millivolts."""
    found = {}
    drivers = root / "sys/bus/i2c/drivers"
    for number, (chip, rails) in enumerate(CHIPS.items()):
        folder = drivers / f"ina3221/{chip}/hwmon/hwmon{number + 3}"
        for channel, (rail, millivolts) in enumerate(rails.items(), FIRST_CHANNEL[chip]):
            if jetpack == 4:
                folder = drivers / f"ina3221x/{chip}/iio:device{number}"
                _put(folder, f"rail_name_{channel - 1}", rail)
                file = folder / f"in_power{channel - 1}_input"
            else:
                _put(folder, f"in{channel}_label", rail)
                _put(folder, f"in{channel}_input", str(millivolts))
                _put(folder, "in7_label", "sum of shunt voltages")
                _put(folder, "in7_input", "12")
                file = folder / f"curr{channel}_input"
            found[rail] = (file, jetpack == 4, millivolts)
    return found


def configuration() -> str:
    """An nvpmodel configuration with the board's published modes, clocks and masks."""
    table = pd.read_csv(paths.PUBLISHED / "nvpmodel_agx_orin.csv", dtype=str)
    modes = table[table["module"] == MODULE].set_index("mode")
    lines = ["< PARAM TYPE=FILE NAME=CPU_ONLINE >"]
    lines += [f"CORE_{core} /sys/devices/system/cpu/cpu{core}/online" for core in range(CORES)]
    lines += [
        "< PARAM TYPE=FILE NAME=TPC_POWER_GATING >",
        "TPC_PG_MASK /sys/devices/gpu.0/tpc_pg_mask",
        "TPC_PG_MASK_KNEXT /sys/devices/platform/gpu.0/tpc_pg_mask",
    ]
    for name, attribute in (POWER_ON[:2], POWER_AUTO[:2]):
        lines += [
            f"< PARAM TYPE=FILE NAME={name} >",
            f"{attribute} /sys/devices/gpu.0/power/control",
            f"{attribute}_KNEXT /sys/devices/platform/gpu.0/power/control",
        ]
    for number, core in enumerate(CLUSTERS):
        folder = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
        lines += [
            f"< PARAM TYPE=CLOCK NAME=CPU_A78_{number} >",
            f"FREQ_TABLE {folder}/scaling_available_frequencies",
            f"MAX_FREQ {folder}/scaling_max_freq",
            f"MIN_FREQ {folder}/scaling_min_freq",
        ]
    lines.append("< PARAM TYPE=CLOCK NAME=GPU >")
    for suffix, folder in (("", GPU[5]), ("_KNEXT", GPU[6])):
        for attribute, file in (
            ("FREQ_TABLE", "available_frequencies"),
            ("MAX_FREQ", "max_freq"),
            ("MIN_FREQ", "min_freq"),
        ):
            lines.append(f"{attribute}{suffix} {folder}/{file}")
    for name, (old, new) in _caps().items():
        lines += [f"< PARAM TYPE=CLOCK NAME={name} >", f"MAX_FREQ {old}", f"MAX_FREQ_KNEXT {new}"]
    for mode in ("MAXN", "15W", "30W", "50W"):
        lines += _mode(mode, modes.loc[mode])
    return "\n".join([*lines, "< PM_CONFIG DEFAULT=2 >"])


def _mode(name: str, facts: pd.Series) -> list[str]:
    free = name == "MAXN"
    online = int(facts["online_cpu"])
    lines = [f"< POWER_MODEL ID={facts['id']} NAME={name if free else 'MODE_' + name} >"]
    lines += [f"CPU_ONLINE CORE_{core} {int(core < online)}" for core in range(CORES)]
    lines += [f"TPC_POWER_GATING TPC_PG_MASK {facts['tpc_pg_mask']}", " ".join(POWER_ON)]
    for number, core in enumerate(CLUSTERS):
        if core < online:
            cap = -1 if free else round(1000 * float(facts["cpu_max_mhz"]))
            lines += [f"CPU_A78_{number} MIN_FREQ 729600", f"CPU_A78_{number} MAX_FREQ {cap}"]
    gpu = -1 if free else round(1e6 * float(facts["gpu_max_mhz_jp6"]))
    lines += ["GPU MIN_FREQ 0", f"GPU MAX_FREQ {gpu}", " ".join(POWER_AUTO)]
    for knob, column in (
        ("EMC", "emc_mhz"),
        ("DLA0_CORE", "dla_core_mhz"),
        ("DLA1_CORE", "dla_core_mhz"),
    ):
        most = free or (knob == "EMC" and facts[column] == EMC_MHZ)
        lines.append(f"{knob} MAX_FREQ {-1 if most else round(1e6 * float(facts[column]))}")
    return lines


def _caps() -> dict[str, tuple[str, str]]:
    """Caps of the memory and the DLA cores: where JetPack 5 has them, and where 6 has."""
    caps = {"EMC": ("/sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "/sys/kernel/nvpmodel_clk_cap/emc")}
    for core, address in ((0, "15880000"), (1, "158c0000")):
        tail = f"{address}.nvdla{core}"
        caps[f"DLA{core}_CORE"] = (
            f"/sys/devices/platform/13e40000.host1x/{tail}/acm/clk_cap/dla{core}_core",
            f"/sys/devices/platform/bus@0/13e00000.host1x/{tail}/clk_cap/dla{core}_core",
        )
    return caps


def _lay_out_clocks(root: Path, jetpack: int) -> None:
    for core in range(CORES):
        _put(root, f"sys/devices/system/cpu/cpu{core}/online", "1")
    for core in CLUSTERS:
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        steps = " ".join(map(str, CPU_STEPS_KHZ))
        _put(root, f"{folder}/scaling_available_frequencies", steps)
        _put(root, f"{folder}/scaling_min_freq", str(CPU_STEPS_KHZ[0]))
        _put(root, f"{folder}/scaling_max_freq", str(CPU_STEPS_KHZ[-1]))
    newer = jetpack == 6
    gpu = GPU[6 if newer else 5].lstrip("/")
    _put(root, f"{gpu}/available_frequencies", " ".join(map(str, GPU_STEPS_HZ)))
    _put(root, f"{gpu}/min_freq", str(GPU_STEPS_HZ[0]))
    _put(root, f"{gpu}/max_freq", str(GPU_STEPS_HZ[-1]))
    platform = "platform/" if newer else ""
    _put(root, f"sys/devices/{platform}gpu.0/tpc_pg_mask", "0")
    _put(root, f"sys/devices/{platform}gpu.0/power/control", "auto")
    for name, files in _caps().items():
        _put(root, files[newer].lstrip("/"), "3199000000" if name == "EMC" else "1600000000")


def _put(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")
