"""Rails of a Jetson: the INA3221 current sensors, as the kernel shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Channel:
    """One rail: its label, and the files of its voltage (mV) and current (mA)."""

    label: str
    files: tuple[Path, Path]


class Ina3221Rails:
    """Power of every labelled rail, as ``sampler.Rails``.

    Parameters
    ----------
    root
        Of the file system.

    Raises
    ------
    OSError
        If there are no sensors, or they may not be read.
    ValueError
        If it is not known which rails make up the total.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        channels = find_channels(root)
        if not channels:
            raise FileNotFoundError(f"no INA3221 sensors under {root / 'sys/bus/i2c/drivers'}")
        self.names = tuple(channel.label for channel in channels)
        self.counted = _counted(self.names)
        self.range_w = (0.0, HIGHEST_W)
        self._files: list[tuple[str, list[int]]] = []
        try:
            for channel in channels:  # kept open: opening costs more than reading
                opened: list[int] = []
                self._files.append((channel.label, opened))
                for file in channel.files:
                    opened.append(os.open(file, os.O_RDONLY))
            self.read()  # fails now rather than in the first window
        except BaseException:
            self.close()
            raise

    def read(self) -> list[float]:
        """Watts of every rail now.

        Raises OSError if a rail vanished, ValueError if one shows nonsense; the rail is named.
        """
        if not self._files:
            raise OSError("the power sensors were closed")
        return [self._watts(label, files) for label, files in self._files]

    def close(self) -> None:
        """Close the files. Closing twice does nothing."""
        while self._files:
            for file in self._files.pop()[1]:
                os.close(file)

    def _watts(self, label: str, files: list[int]) -> float:
        try:
            texts = [os.pread(file, 32, 0) for file in files]
        except OSError as error:
            raise OSError(f"rail {label} vanished: {error.strerror}") from error
        if not all(texts):
            raise OSError(f"rail {label} vanished: its file is empty")
        try:
            millivolts, milliamps = (int(text) for text in texts)
        except ValueError:
            raise ValueError(f"rail {label} shows {texts!r}: expected numbers") from None
        if milliamps < LEAST_MA:
            raise ValueError(f"rail {label}: negative reading of {milliamps} mA")
        return millivolts * milliamps / 1e6


def find_channels(root: Path) -> list[Channel]:
    """The labelled rails under a root, in the order of their chips and channels.

    The seventh input of newer kernels is left out: it adds shunt voltages and has no current.
    """
    channels = []
    for folder in sorted(root.glob(HWMON)):
        for label in sorted(folder.glob("in*_label")):
            number = re.sub(r"\D", "", label.name)
            files = (folder / f"in{number}_input", folder / f"curr{number}_input")
            name = label.read_text().strip()
            if all(file.exists() for file in files) and name != NOT_CONNECTED:
                channels.append(Channel(name, files))
    return channels


def _counted(names: Sequence[str]) -> tuple[str, ...]:
    for total in TOTALS:
        if total <= set(names):
            return tuple(name for name in names if name in total)
    raise ValueError(
        f"rails {', '.join(names)}: it is not known which of them make up the module; add them to "
        "TOTALS in mllm_sched/harness/ina3221.py"
    )
