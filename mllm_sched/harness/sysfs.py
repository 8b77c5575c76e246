"""Reads and writes the small files through which a kernel is set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# What nvpmodel takes -1 for since JetPack 6. Memory runs at 3199 MHz, and the highest number of 32
# bits would be a cap on it: 2147 MHz.
UNLIMITED = 2**63 - 1


class KnobError(OSError):
    """A value that the kernel did not take."""


def read(file: Path) -> str:
    """The text of a file; empty if it is not there or may not be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def write_all(wanted: Iterable[tuple[Path, str]]) -> None:
    """Write values, in order, and read the clocks among them back. Files not there are left out.

    A file may come twice: a GPU is kept awake while its clocks are set.

    A kernel refuses a minimum above the maximum, and shows no clocks of a core that is off. So
    all is written twice, and only the second time must succeed.

    Raises
    ------
    KnobError
        Names the file and the value.
    """
    pairs = list(wanted)
    for last in (False, True):
        for file, value in pairs:
            if file.exists():
                _write(file, possible(file, value), last)


def possible(file: Path, value: str) -> str:
    """The value that the kernel will show: clocks come in steps, and -1 means no limit."""
    if not re.fullmatch(r"-?\d+", value):
        return value
    wanted = int(value) if int(value) >= 0 else UNLIMITED
    steps = _steps(file)
    return str(max((step for step in steps if step <= wanted), default=min(steps, default=wanted)))


def _write(file: Path, text: str, last: bool) -> None:
    try:
        if read(file) != text:
            file.write_text(text)
    except OSError as error:
        if last:
            raise KnobError(f"{file}: {text} was refused: {error.strerror}") from error
        return
    if last and "freq" in file.name and (now := read(file)) != text:
        raise KnobError(f"{file}: wrote {text}, it shows {now or 'nothing'}")


def _steps(file: Path) -> list[int]:
    """The clocks that a file beside this one lists; none for most knobs."""
    for name in ("scaling_available_frequencies", "available_frequencies"):
        if "freq" in file.name and (text := read(file.with_name(name))):
            return sorted(int(step) for step in text.split())
    return []
