"""Reads the power modes of a Jetson from its own nvpmodel configuration; ``clocks`` sets them.

The file names knobs (``< PARAM ... >``: an attribute and its file, a line each) and then modes
(``< POWER_MODEL ... >``: knob, attribute and value). A knob may name two files, the second with
the suffix ``_KNEXT`` for newer kernels; the one that is there counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Knob = tuple[str, str]
"""A parameter and its attribute, such as ``("GPU", "MAX_FREQ")``."""

NEWER_KERNEL = "_KNEXT"
MASK = "PG_MASK"  # of the GPU's and other units' power gating, which only a reboot changes
_SECTION = re.compile(r"<\s*(?P<kind>\w+)\s*(?P<facts>[^>]*)>")


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

    def mode(self, wanted: str | int) -> Mode:
        """A mode by id or name, with or without ``MODE_``; ValueError lists those there are."""
        for mode in self.modes:
            if wanted == mode.id or _short(str(wanted)) == _short(mode.name):
                return mode
        known = ", ".join(f"{mode.id} ({mode.name})" for mode in self.modes)
        raise ValueError(f"power mode {wanted!r}: the board has {known}")


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
    >>> conf.mode("15W").settings
    {('GPU', 'MAX_FREQ'): '408000000'}
    """
    knobs: dict[Knob, tuple[str, ...]] = {}
    modes: list[Mode] = []
    settings: dict[Knob, str] = {}
    section = param = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        where = f"{name}, line {number}: {raw.strip()!r}"
        if line.startswith("<"):
            section, facts = _heading(line, where)
            if section == "PARAM":
                param = _fact(facts, "NAME", where)
            elif section == "POWER_MODEL":
                settings = {}
                mode_id = _number(_fact(facts, "ID", where), where)
                modes.append(Mode(mode_id, _fact(facts, "NAME", where), settings))
        elif section == "PARAM":
            attribute, file = _words(line, 2, "an attribute and a file", where)
            knob = (param, attribute.removesuffix(NEWER_KERNEL))
            knobs[knob] = (*knobs.get(knob, ()), file)
        elif section == "POWER_MODEL":
            param_name, attribute, value = _words(line, 3, "a knob, attribute and value", where)
            settings[param_name, attribute] = _checked(attribute, value, where)
    if not modes:
        raise ValueError(f"{name}: no < POWER_MODEL ... > section")
    return NvpModelConf(knobs, tuple(modes))


def _heading(line: str, where: str) -> tuple[str, dict[str, str]]:
    found = _SECTION.fullmatch(line)
    if not found:
        raise ValueError(f"{where}: expected < SECTION NAME=VALUE ... >")
    pairs = (fact.partition("=") for fact in found["facts"].split())
    return found["kind"], {key: value for key, _, value in pairs}


def _fact(facts: Mapping[str, str], key: str, where: str) -> str:
    if not facts.get(key):
        raise ValueError(f"{where}: expected {key}=")
    return facts[key]


def _words(line: str, count: int, expected: str, where: str) -> list[str]:
    words = line.split()
    if len(words) != count:
        raise ValueError(f"{where}: expected {expected}")
    return words


def _number(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{where}: expected a whole number, got {text!r}") from None


def _checked(attribute: str, value: str, where: str) -> str:
    """Clocks and masks are numbers; other values may be words such as ``on``."""
    if "FREQ" in attribute or MASK in attribute:
        try:
            int(value, 0)
        except ValueError:
            raise ValueError(f"{where}: expected a whole number, got {value!r}") from None
    return value


def _short(name: str) -> str:
    return name.upper().removeprefix("MODE_")
