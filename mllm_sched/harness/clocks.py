"""Power levels of a Jetson: switched where that is possible live, imitated by clock caps elsewhere.

``nvpmodel`` refuses to switch between modes with different numbers of GPU cores without a reboot.
Between those, a level is imitated: the clocks and CPU cores of the mode are set through the same
files that ``nvpmodel`` writes, except those that need a reboot. That is not the mode; the label
``caps:15W`` says so in every row.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mllm_sched.harness.nvpmodel import Mode, NvpModelConf, needs_reboot, parse
from mllm_sched.harness.reading import HarnessError

CONFIGURATION = "etc/nvpmodel.conf"
PROGRAM = "usr/sbin/nvpmodel"
RECORD = "var/lib/mllm-sched/clocks.json"
BOOT_ID = "proc/sys/kernel/random/boot_id"

# What else decides speed and power, and is written down with every profile.
BESIDE = {
    "emc_hz": "sys/kernel/debug/bpmp/debug/clk/emc/rate",
    "fan_pwm": "sys/devices/platform/pwm-fan/hwmon/hwmon*/pwm1",
}
MAXN_W = 60  # where the level without a cap is placed; see ArmSpace.agx_orin
SWITCH_TIMEOUT_S = 30.0
ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C raises KeyboardInterrupt by itself


class ClockError(HarnessError):
    """A level that cannot be set; the message says why and what to do."""


class Clocks:
    """The board's power levels.

    The state found at first is recorded on disk before anything is changed, and put back by
    ``close``, at the end of the process, and on SIGINT, SIGTERM and SIGHUP. After ``kill -9`` the
    next ``Clocks`` finds the record and restores it. A record from before a reboot is dropped,
    since the reboot has reset the clocks.

    Parameters
    ----------
    root
        Of the file system; another one for an imitation of the board.

    Attributes
    ----------
    recovered
        Whether clocks of a run that was killed had to be put back.

    Raises
    ------
    OSError
        If the board has no nvpmodel configuration, or this is not root.
    ClockError
        If another run is using the clocks, or those of an earlier run could not be put back.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        path = root / CONFIGURATION
        self.conf: NvpModelConf = parse(path.read_text(), str(path))
        self._record = root / RECORD
        self._lock = _locked(self._record.with_suffix(".lock"))
        self._caught: list[signal.Signals] = []
        self.recovered = self._recover()
        atexit.register(self.close)

    @property
    def levels(self) -> dict[int, Mode]:
        """Modes by their watts; the mode without a cap is placed at ``MAXN_W``."""
        found = {}
        for mode in self.conf.modes:
            watts = re.search(r"(\d+)\s*W\b", mode.name)
            if watts:
                found[int(watts[1])] = mode
            elif mode.name.upper().startswith("MAXN"):
                found[MAXN_W] = mode
        return dict(sorted(found.items()))

    def current(self) -> Mode:
        """The mode that ``nvpmodel -q`` reports; ClockError if it does not."""
        told = self._nvpmodel("-q")
        ids = re.findall(r"^\s*(\d+)\s*$", told, re.MULTILINE)
        if not ids:
            raise ClockError(f"nvpmodel -q names no mode: {told.strip()!r}")
        return self.conf.mode(int(ids[-1]))

    def how(self, power_w: int) -> str:
        """Label of the way a level is reached now: ``mode:50W`` or ``caps:15W``."""
        mode = self._mode(power_w)
        live = not needs_reboot(self.conf, self.current(), mode)
        return f"{'mode' if live else 'caps'}:{mode.name}"

    def set_level(self, power_w: int, imitate: bool = True) -> str:
        """Reach a power level, and say how; see ``how``.

        Parameters
        ----------
        power_w
            A key of ``levels``.
        imitate
            Whether clock caps may stand in where the mode itself needs a reboot.

        Raises
        ------
        ValueError
            For an unknown level; the known ones are listed.
        ClockError
            If the mode needs a reboot and may not be imitated, or a clock was not taken.
        """
        mode, label = self._mode(power_w), self.how(power_w)
        self._remember()
        if label.startswith("mode:"):
            self._nvpmodel("-m", str(mode.id))
            if (now := self.current()).id != mode.id:
                raise ClockError(f"nvpmodel was asked for {mode.name} and stayed in {now.name}")
        elif not imitate:
            raise ClockError(
                f"{mode.name} needs a reboot: it has another number of GPU cores than "
                f"{self.current().name}. Boot into it with `nvpmodel -m {mode.id}`, or let clock "
                "caps imitate it"
            )
        self._write(self._wanted(mode))
        return label

    def restore(self) -> None:
        """Put back what was found at first. Without a record there is nothing to do."""
        if not self._record.exists():
            return
        found = self._found()
        mode = self.conf.mode(found["mode"])
        if self.current().id != mode.id:
            self._nvpmodel("-m", str(mode.id))
        self._write(found["files"])
        self._record.unlink()

    def close(self) -> None:
        """Put everything back and let others use the clocks. Closing twice does nothing."""
        if self._lock.closed:
            return
        self.restore()
        self._lock.close()
        atexit.unregister(self.close)
        for number in self._caught:
            signal.signal(number, signal.SIG_DFL)
        self._caught = []

    def state(self) -> dict[str, str]:
        """What is set now: the mode, whether clocks are pinned, EMC and fan."""
        facts = {"mode": self.current().name, "pinned_by_jetson_clocks": str(self._pinned())}
        for name, pattern in BESIDE.items():
            texts = [text for file in sorted(self.root.glob(pattern)) if (text := _read(file))]
            facts[name] = texts[0] if texts else "not shown"
        return facts

    def _mode(self, power_w: int) -> Mode:
        if power_w not in self.levels:
            known = ", ".join(f"{watts} ({mode.name})" for watts, mode in self.levels.items())
            raise ValueError(f"power_w={power_w}: the board has {known}")
        return self.levels[power_w]

    def _wanted(self, mode: Mode) -> dict[str, str]:
        """Files of a mode that may be written live, and their values.

        Where the mode sets no cap (-1) and the file does not list its clocks, what was found at
        first is put back.
        """
        knobs = self.conf.knobs
        wanted = {
            knobs[knob]: value
            for knob, value in mode.settings.items()
            if knob in knobs and "PG_MASK" not in knob[1]
        }
        found = self._found()["files"] if "-1" in wanted.values() and self._record.exists() else {}
        return {
            path: found.get(path, value)
            if value == "-1" and not _steps(self._file(path))
            else value
            for path, value in wanted.items()
        }

    def _found(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._record.read_text())
        return found

    def _file(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _write(self, wanted: Mapping[str, str]) -> None:
        """Write values and read them back.

        A minimum above the new maximum is refused by the kernel, and so is the reverse. Twice in
        a row settles either order.
        """
        for last in (False, True):
            for path, value in wanted.items():
                file = self._file(path)
                if file.exists():
                    self._write_one(file, value, last)

    def _write_one(self, file: Path, value: str, last: bool) -> None:
        text = _possible(file, value)
        try:
            if _read(file) != text:
                file.write_text(text)
        except OSError as error:
            if last:
                raise ClockError(f"{file.name}: {text} was refused: {error.strerror}") from error
            return
        if last and "freq" in file.name and (now := _read(file)) != text:
            raise ClockError(f"{file}: wrote {text}, it shows {now}")

    def _remember(self) -> None:
        """Record the state that was found, once, before the first change."""
        if self._record.exists():
            return
        paths = {path for mode in self.conf.modes for path in self._wanted(mode)}
        files = {path: _read(self._file(path)) for path in sorted(paths)}
        found = {
            "boot": _read(self.root / BOOT_ID),
            "mode": self.current().id,
            "files": {path: text for path, text in files.items() if text},
        }
        self._record.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._record.with_suffix(".unfinished")
        with unfinished.open("w") as file:
            json.dump(found, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._record)
        self._catch_signals()

    def _catch_signals(self) -> None:
        """Have signals that would end the process at once end it in order."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may say what signals do
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _stop)
                self._caught.append(number)

    def _recover(self) -> bool:
        if not self._record.exists():
            return False
        if self._found()["boot"] != _read(self.root / BOOT_ID):
            self._record.unlink()
            return False
        self.restore()
        return True

    def _nvpmodel(self, *arguments: str) -> str:
        """Call nvpmodel; nobody answers what it asks, so a reboot is always declined."""
        program = self.root / PROGRAM
        try:
            done = subprocess.run(
                [str(program), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SWITCH_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClockError(f"{program}: {error}") from error
        told = done.stdout + done.stderr
        if "reboot" in told.lower():
            raise ClockError(f"nvpmodel {' '.join(arguments)} asks for a reboot: {told.strip()}")
        if done.returncode:
            raise ClockError(f"nvpmodel {' '.join(arguments)} failed: {told.strip()}")
        return told

    def _pinned(self) -> bool:
        """Whether the GPU's clock may not move, as ``jetson_clocks`` leaves it."""
        knobs = {
            attribute: path
            for (param, attribute), path in self.conf.knobs.items()
            if param.upper() == "GPU"
        }
        low, high = (_read(self._file(knobs.get(f"{end}_FREQ", "?"))) for end in ("MIN", "MAX"))
        return bool(low) and low == high


def _possible(file: Path, value: str) -> str:
    """The value that the kernel would take: -1 means the most there is; clocks come in steps."""
    if "freq" not in file.name:
        return value
    steps = _steps(file)
    if not steps:
        return value
    if int(value) < 0:
        return str(steps[-1])
    return str(max((step for step in steps if step <= int(value)), default=steps[0]))


def _steps(file: Path) -> list[int]:
    for name in ("scaling_available_frequencies", "available_frequencies"):
        if text := _read(file.with_name(name)):
            return sorted(int(step) for step in text.split())
    return []


def _read(file: Path) -> str:
    """The text of a file; empty if it is not there or may not be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _locked(path: Path) -> IO[str]:
    """A file that one process at a time can hold; the system lets go of it when that one ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ClockError(f"another run is using the clocks: it holds {path}") from None
    return file


def _stop(number: int, frame: FrameType | None) -> None:
    """A signal that would end the process raises instead, so that ``finally`` and exit run."""
    raise SystemExit(128 + number)
