"""An AGX Orin that a harness cannot tell from its files: sensors fed live, programs that answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mllm_sched.harness.fake_jetson.files import CHIPS, ZONES, lay_out, sensor_files
from mllm_sched.harness.fake_jetson.waveforms import Pulses, Ramp, Waveform

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
        lay_out(self.root, jetpack)
        self._sensors = sensor_files(self.root, jetpack)

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
