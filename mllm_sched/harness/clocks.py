"""Power levels of a Jetson: switched where that is possible live, imitated by clock caps elsewhere.

``nvpmodel`` does not switch between modes with different numbers of GPU cores without a reboot.
Between those, the clocks and CPU cores of the mode are set through the files that ``nvpmodel``
writes, except those that need a reboot. The label ``caps:MODE_15W`` says so in every row.
"""

from __future__ import annotations

import atexit
import json
import re
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from mllm_sched.atomic_io import locked, write_whole
from mllm_sched.harness.nvpmodel import MASK, ClockError, Mode, NvpModel

RECORD = "var/lib/mllm-sched/clocks.json"
BOOT_ID = "proc/sys/kernel/random/boot_id"

# What else decides speed and power, and is written down with every profile.
BESIDE = {
    "emc_hz": "sys/kernel/debug/bpmp/debug/clk/emc/rate",
    "fan_pwm": "sys/devices/platform/pwm-fan/hwmon/hwmon*/pwm1",
}
MAXN_W = 60  # where the level without a cap is placed; see ArmSpace.agx_orin
# What -1 means since JetPack 6. The highest number of 32 bits would be a cap on the memory's clock:
# 2147 MHz of 3199.
UNLIMITED = 2**63 - 1
ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C raises KeyboardInterrupt by itself


class Clocks:
    """The device's power levels.

    The initial state is recorded on disk before anything is changed, and put back by ``close``, at
    the end of the process, and on SIGINT, SIGTERM and SIGHUP. After ``kill -9`` the next ``Clocks``
    finds the record and restores it. A record from before a reboot is dropped.

    Raises OSError if the board has no nvpmodel configuration, or this is not root; ClockError if
    another run is using the clocks, or those of an earlier run could not be put back.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.nvpmodel = NvpModel(root)
        self._record = root / RECORD
        lock = locked(self._record.with_suffix(".lock"))
        if lock is None:
            raise ClockError(f"another run is using the clocks: {self._record} is in use")
        self._lock = lock
        self._caught: list[signal.Signals] = []
        self._shown: dict[Path, str] = {}  # by file, after the last level was set
        self._recover()
        atexit.register(self.close)

    @property
    def levels(self) -> dict[int, Mode]:
        """Modes by their watts; the mode without a cap is placed at ``MAXN_W``."""
        found = {}
        for mode in self.nvpmodel.conf.modes:
            if watts := re.search(r"(\d+)W", mode.name):
                found[int(watts[1])] = mode
            elif mode.name.upper().startswith("MAXN"):
                found[MAXN_W] = mode
        return dict(sorted(found.items()))

    def set_level(self, power_w: int, imitate: bool = True) -> str:
        """Reach one of ``levels``, and say how: ``mode:MODE_50W`` or ``caps:MODE_15W``.

        Clock caps stand in where the mode itself needs a reboot, if they may ``imitate`` it.

        Raises ValueError for an unknown level, and after ``close``; ClockError if the mode needs a
        reboot and may not be imitated, or a clock was not taken.
        """
        if self._lock.closed:
            raise ValueError("the clocks were put back when they were closed")
        if power_w not in self.levels:
            known = ", ".join(f"{watts} ({mode.name})" for watts, mode in self.levels.items())
            raise ValueError(f"power_w={power_w}: the board has {known}")
        mode = self.levels[power_w]
        self._remember()
        switched = self.nvpmodel.switch(mode)
        if not switched and not imitate:
            raise ClockError(
                f"{mode.name} needs a reboot. Boot into it with `nvpmodel -m {mode.id}`, or let "
                "clock caps imitate it"
            )
        # After a switch too: the mode may have been set all along, with caps on top of it.
        wanted = self._wanted(mode)
        self._write(wanted)
        self._shown = {file: read(file) for file in (self._file(path) for path, _ in wanted)}
        return f"{'mode' if switched else 'caps'}:{mode.name}"

    def changed(self) -> bool:
        """Whether another program has changed what the last level set; reads some thirty files."""
        return any(read(file) != text for file, text in self._shown.items())

    def restore(self) -> None:
        """Put back what was found at first. Without a record there is nothing to do."""
        if not self._record.exists():
            return
        found = json.loads(self._record.read_text())
        try:
            if self.nvpmodel.current().id != found["mode"]:
                self.nvpmodel.demand(found["mode"])
        finally:  # clocks go back even where the mode does not
            self._write(found["files"].items())
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
        facts = {"mode": self.nvpmodel.current().name, "gpu_clock_pinned": str(self._pinned())}
        for name, pattern in BESIDE.items():
            texts = [text for file in sorted(self.root.glob(pattern)) if (text := read(file))]
            facts[name] = texts[0] if texts else "not shown"
        return facts

    def _wanted(self, mode: Mode) -> list[tuple[str, str]]:
        """Files of a mode that may be written live, and their values, in the mode's order."""
        return [
            (file, value)
            for knob, value in mode.settings.items()
            for file in self.nvpmodel.conf.knobs.get(knob, ())
            if MASK not in knob[1]
        ]

    def _file(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _write(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Write values to the files that are there, in order.

        A kernel refuses a minimum above the maximum, and shows no clocks of a core that is off. So
        all is written twice, and only the second time must succeed.
        """
        pairs = [(self._file(path), value) for path, value in wanted]
        for last in (False, True):
            for file, value in pairs:
                if file.exists():
                    _write(file, _possible(file, value), last)

    def _remember(self) -> None:
        """Record the state that was found, once, before the first change."""
        if self._record.exists():
            return
        paths = {path for mode in self.nvpmodel.conf.modes for path, _ in self._wanted(mode)}
        files = {path: read(self._file(path)) for path in sorted(paths)}
        found = {
            "boot": read(self.root / BOOT_ID),
            "mode": self.nvpmodel.current().id,
            "files": {path: text for path, text in files.items() if text},
        }
        write_whole(self._record, json.dumps(found, indent=1).encode())
        self._catch_signals()

    def _catch_signals(self) -> None:
        """Have signals that would end the process at once end it in order."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may say what signals do
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _stop)
                self._caught.append(number)

    def _recover(self) -> None:
        """Put back what a killed run found; a reboot since has done so already."""
        if self._record.exists():
            boot = json.loads(self._record.read_text())["boot"]
            if boot != read(self.root / BOOT_ID):
                self._record.unlink()
        self.restore()

    def _pinned(self) -> bool:
        """Whether the GPU's clock may not move, as ``jetson_clocks`` leaves it."""
        low, high = (
            {read(self._file(file)) for file in self.nvpmodel.conf.knobs.get(("GPU", end), ())}
            - {""}
            for end in ("MIN_FREQ", "MAX_FREQ")
        )
        return bool(low) and low == high


def _stop(number: int, frame: FrameType | None) -> None:
    """A signal that would end the process raises instead, so that ``finally`` and exit run."""
    raise SystemExit(128 + number)


def read(file: Path) -> str:
    """The text of a file; empty if it is not there or may not be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _write(file: Path, text: str, last: bool) -> None:
    """Write a value and read a clock back; ClockError if it was not taken the last time."""
    try:
        if read(file) != text:
            file.write_text(text)
    except OSError as error:
        if last:
            raise ClockError(f"{file}: {text} was refused: {error.strerror}") from error
        return
    if last and "freq" in file.name and (now := read(file)) != text:
        raise ClockError(f"{file}: wrote {text}, it shows {now or 'nothing'}")


def _possible(file: Path, value: str) -> str:
    """The value that the kernel will show: clocks come in steps, and -1 means no limit."""
    if not re.fullmatch(r"-?\d+", value):
        return value
    wanted = int(value) if int(value) >= 0 else UNLIMITED
    steps: list[int] = []
    for name in ("scaling_available_frequencies", "available_frequencies"):
        if "freq" in file.name and (text := read(file.with_name(name))):
            steps = [int(step) for step in text.split()]
    return str(max((step for step in steps if step <= wanted), default=min(steps, default=wanted)))
