"""Rails of a Jetson: the INA3221 current sensors, as the kernel shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

HWMON = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"  # since JetPack 5

# Which rails make up the module, by what is there: the first set that is complete counts. A rail
# that is not named lies within one that is; on the AGX Orin, VDDQ_VDD2_1V8AO within VIN_SYS_5V0.
TOTALS: tuple[frozenset[str], ...] = (
    frozenset({"VDD_IN"}),  # Orin NX and Nano, Xavier NX: one sensor for the whole module
    frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),  # AGX Xavier
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),  # AGX Orin
)

NOT_CONNECTED = "NC"

# The module is rated at 60 W; peaks may go beyond. Only the bounds of a window depend on it.
HIGHEST_W = 75.0

# The sensor's offset shows as a step or two of 20 mA below zero on a rail that is off. A current
# further below means a sensor that is broken or read wrongly.
LEAST_MA = -40


class Ina3221Rails:
    """Power of every labelled rail, as ``sampler.Rails``.

    OSError if there are no sensors, or they may not be read; ValueError if it is not known which
    rails make up the total.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        found = find_rails(root)
        if not found:
            raise FileNotFoundError(f"no INA3221 sensors under {root / 'sys/bus/i2c/drivers'}")
        self.names = tuple(found)
        self.counted = _counted(self.names)
        self.range_w = (0.0, HIGHEST_W)
        self._files: dict[str, list[int]] = {}
        try:
            for rail, paths in found.items():  # kept open: opening costs more than reading
                self._files[rail] = opened = []
                for path in paths:
                    opened.append(os.open(path, os.O_RDONLY))
            self.read()  # fails now rather than in the first window
        except BaseException:
            self.close()
            raise

    def read(self) -> list[float]:
        """Watts now; OSError names a rail that vanished, ValueError one that shows nonsense."""
        if not self._files:
            raise OSError("the power sensors were closed")
        return [_watts(rail, files) for rail, files in self._files.items()]

    def close(self) -> None:
        """Close the files. Closing twice does nothing."""
        for files in self._files.values():
            for file in files:
                os.close(file)
        self._files = {}


def _watts(rail: str, files: Sequence[int]) -> float:
    try:
        texts = [os.pread(file, 32, 0) for file in files]
    except OSError as error:
        raise OSError(f"rail {rail} vanished: {error.strerror}") from error
    if not all(texts):
        raise OSError(f"rail {rail} vanished: its file is empty")
    try:
        millivolts, milliamps = (int(text) for text in texts)
    except ValueError:
        raise ValueError(f"rail {rail} shows {texts!r}: expected numbers") from None
    if milliamps < LEAST_MA:
        raise ValueError(f"rail {rail}: negative reading of {milliamps} mA")
    return millivolts * milliamps / 1e6


def find_rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Files of voltage (mV) and current (mA) by label, in the order of chips and channels.

    The seventh input of newer kernels is left out: it adds shunt voltages and has no current.
    """
    found = {}
    for folder in sorted(root.glob(HWMON)):
        for label in sorted(folder.glob("in*_label")):
            number, name = re.sub(r"\D", "", label.name), label.read_text().strip()
            files = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if name != NOT_CONNECTED and all(file.exists() for file in files):
                found[name] = files
    return found


def _counted(names: Sequence[str]) -> tuple[str, ...]:
    for total in TOTALS:
        if total <= set(names):
            return tuple(name for name in names if name in total)
    raise ValueError(
        f"rails {', '.join(names)}: it is not known which of them make up the module; add them to "
        "TOTALS in mllm_sched/harness/ina3221.py"
    )
