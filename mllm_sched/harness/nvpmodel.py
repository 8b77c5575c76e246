"""Power modes of a Jetson: its nvpmodel configuration, and the program that switches between them.

The configuration names knobs (``< PARAM ... >``: an attribute and its file, a line each) and then
modes (``< POWER_MODEL ... >``: knob, attribute and value). A knob may name two files, the second
with the suffix ``_KNEXT`` for newer kernels; the one that is there counts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mllm_sched.harness.reading import HarnessError

CONFIGURATION = "etc/nvpmodel.conf"
PROGRAM = "usr/sbin/nvpmodel"
SWITCH_TIMEOUT_S = 30.0
NEWER_KERNEL = "_KNEXT"
MASK = "PG_MASK"  # of the GPU's and other units' power gating, which only a reboot changes
_SECTION = re.compile(r"<\s*(?P<kind>\w+)\s*(?P<facts>[^>]*)>")

Knob = tuple[str, str]
"""A parameter and its attribute, such as ``("GPU", "MAX_FREQ")``."""


class ClockError(HarnessError):
    """A level that cannot be set; the message says why and what to do."""


class RebootNeeded(ClockError):
    """A mode that nvpmodel does not enter live."""


@dataclass(frozen=True)
class Mode:
    """A power mode: what it sets, as text."""

    id: int
    name: str
    settings: Mapping[Knob, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NvpModelConf:
    """The knobs of a board, and its modes in the order of the file."""

    knobs: Mapping[Knob, tuple[str, ...]]  # files of each, the older kernel's first
    modes: tuple[Mode, ...]


class NvpModel:
    """The modes of the board under a root; OSError if it has no nvpmodel configuration."""

    def __init__(self, root: Path) -> None:
        path = root / CONFIGURATION
        self.conf = parse(path.read_text(), str(path))
        self._program = root / PROGRAM

    def current(self) -> Mode:
        """The mode that ``nvpmodel -q`` reports; ClockError if it does not."""
        told = self._call("-q")
        ids = re.findall(r"^\s*(\d+)\s*$", told, re.MULTILINE)
        found = [mode for mode in self.conf.modes if ids and mode.id == int(ids[-1])]
        if not found:
            raise ClockError(f"nvpmodel -q names no mode of its configuration: {told.strip()!r}")
        return found[0]

    def switch(self, mode: Mode) -> bool:
        """Whether the board is in the mode, switched to it if that can be done live."""
        now = self.current()
        if now.id == mode.id:
            return True  # asked for the mode it is in, nvpmodel may demand a reboot all the same
        if needs_reboot(now, mode):
            return False
        try:
            self.demand(mode.id)
        except RebootNeeded:
            return False
        if (now := self.current()).id != mode.id:
            raise ClockError(f"nvpmodel was asked for {mode.name} and stayed in {now.name}")
        return True

    def demand(self, mode_id: int) -> None:
        """Ask for a mode; RebootNeeded if nvpmodel does not enter it live."""
        self._call("-m", str(mode_id))

    def _call(self, *arguments: str) -> str:
        """Call nvpmodel; nobody answers what it asks, so a reboot is always declined."""
        command = f"nvpmodel {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [str(self._program), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SWITCH_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClockError(f"{command}: {error}") from error
        told = done.stdout + done.stderr
        if "reboot" in told.lower():
            raise RebootNeeded(f"{command} asks for a reboot: {told.strip()}")
        if done.returncode:
            raise ClockError(f"{command} failed: {told.strip()}")
        return told


def needs_reboot(now: Mode, then: Mode) -> bool:
    """Whether the modes differ in what is power-gated, which only a reboot changes.

    A mode that leaves a mask out keeps what is set. Even where this says no, ``nvpmodel`` may ask
    for a reboot: some releases do so for CPU cores.
    """
    masks = {knob for mode in (now, then) for knob in mode.settings if MASK in knob[1]}
    both = [knob for knob in masks if knob in now.settings and knob in then.settings]
    return any(int(now.settings[knob], 0) != int(then.settings[knob], 0) for knob in both)


def parse(text: str, name: str = "nvpmodel.conf") -> NvpModelConf:
    r"""Read a configuration; ValueError names the line and what was expected there.

    Examples
    --------
    >>> conf = parse(
    ...     "< PARAM TYPE=CLOCK NAME=GPU >\n"
    ...     "MAX_FREQ /sys/gpu/max_freq\n"
    ...     "< POWER_MODEL ID=1 NAME=MODE_15W >\n"
    ...     "GPU MAX_FREQ 408000000\n"
    ... )
    >>> conf.modes[0].settings
    {('GPU', 'MAX_FREQ'): '408000000'}
    """
    knobs: dict[Knob, tuple[str, ...]] = {}
    modes: list[Mode] = []
    settings: dict[Knob, str] = {}
    section = param = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        try:
            if line.startswith("<"):
                section, facts = _heading(line)
                if section == "PARAM":
                    param = _fact(facts, "NAME")
                elif section == "POWER_MODEL":
                    settings = {}
                    modes.append(Mode(int(_fact(facts, "ID")), _fact(facts, "NAME"), settings))
            elif line and section == "PARAM":
                attribute, file = _words(line, 2, "an attribute and a file")
                knob = (param, attribute.removesuffix(NEWER_KERNEL))
                knobs[knob] = (*knobs.get(knob, ()), file)
            elif line and section == "POWER_MODEL":
                knob_name, attribute, value = _words(line, 3, "a knob, attribute and value")
                if "FREQ" in attribute or MASK in attribute:  # others may be words such as "on"
                    int(value, 0)
                settings[knob_name, attribute] = value
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {raw.strip()!r}: {error}") from None
    if not modes:
        raise ValueError(f"{name}: no < POWER_MODEL ... > section")
    return NvpModelConf(knobs, tuple(modes))


def _heading(line: str) -> tuple[str, dict[str, str]]:
    found = _SECTION.fullmatch(line)
    if not found:
        raise ValueError("expected < SECTION NAME=VALUE ... >")
    pairs = (fact.partition("=") for fact in found["facts"].split())
    return found["kind"], {key: value for key, _, value in pairs}


def _fact(facts: Mapping[str, str], key: str) -> str:
    if not facts.get(key):
        raise ValueError(f"expected {key}=")
    return facts[key]


def _words(line: str, count: int, expected: str) -> list[str]:
    words = line.split()
    if len(words) != count:
        raise ValueError(f"expected {expected}")
    return words
