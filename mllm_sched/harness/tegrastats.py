"""Reads what NVIDIA's ``tegrastats`` prints, to check the harness against it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mllm_sched.harness.ina3221 import NOT_CONNECTED

PROGRAM = "usr/bin/tegrastats"

# Newer releases write the unit, older ones do not: "VDD_IN 4220mW/4220mW", "VDD_IN 4220/4220". A
# rail that is off may show a step below zero: "VDD_CPU_CV -398mW/-398mW".
_RAIL = re.compile(
    r"\b(?P<name>[A-Z][A-Z0-9_]+) (?P<now>-?\d+)(?:mW)?/(?P<mean>-?\d+)(?:mW)?(?=\s|$)"
)
_ZONE = re.compile(r"(?P<name>[A-Za-z]\w*)@(?P<celsius>-?\d+(?:\.\d+)?)C")
_RAM = re.compile(r"RAM (?P<used>\d+)/(?P<total>\d+)MB")
_GPU = re.compile(r"GR3D_FREQ (?P<percent>\d+)%")

OFF_C = -256.0  # shown for a zone without power


@dataclass(frozen=True)
class Line:
    """What one line says.

    Attributes
    ----------
    ram_mb
        Used and in all.
    gpu_percent
        How busy the GPU was; None if the line does not say.
    temperatures_c
        By zone; those without power are left out.
    power_w
        By rail: now, and the program's own mean since it was started.
    """

    ram_mb: tuple[int, int]
    gpu_percent: int | None
    temperatures_c: Mapping[str, float]
    power_w: Mapping[str, tuple[float, float]]


def parse(line: str) -> Line:
    """Read one line; what it lacks is left out.

    Raises ValueError if it is none of tegrastats'.

    Examples
    --------
    >>> parse("RAM 2/8MB GR3D_FREQ 7% cpu@41.5C VDD_IN 4220mW/4100mW").power_w
    {'VDD_IN': (4.22, 4.1)}
    """
    ram = _RAM.search(line)
    if not ram:
        raise ValueError(f"no line of tegrastats: {line.strip()[:80]!r}")
    gpu = _GPU.search(line)
    return Line(
        (int(ram["used"]), int(ram["total"])),
        int(gpu["percent"]) if gpu else None,
        {
            zone["name"]: float(zone["celsius"])
            for zone in _ZONE.finditer(line)
            if float(zone["celsius"]) > OFF_C
        },
        {
            rail["name"]: (int(rail["now"]) / 1000, int(rail["mean"]) / 1000)
            for rail in _RAIL.finditer(line)
            if rail["name"] != NOT_CONNECTED
        },
    )


def mean_power(root: Path, seconds: float, interval_ms: int = 100) -> dict[str, float]:
    """Mean watts of every rail, as the program shows them over some seconds.

    Its readings come at equal steps, so a load that repeats itself may beat against them.

    Raises
    ------
    OSError
        If the program is not there.
    RuntimeError
        If it shows no rail (it shows them to root only), or ends early; its last line is told.
    """
    process = subprocess.Popen(
        [str(root / PROGRAM), "--interval", str(interval_ms)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    began_s = time.monotonic()
    stopper = threading.Timer(seconds, process.terminate)
    stopper.start()
    try:
        told = process.communicate()[0]
    finally:
        stopper.cancel()
        process.kill()
        process.wait()
    lasted_s = time.monotonic() - began_s
    shown = defaultdict(list)
    for line in told.splitlines():
        if _RAM.search(line):
            for name, (now_w, _) in parse(line).power_w.items():
                shown[name].append(now_w)
    last = (told.strip().splitlines() or ["nothing"])[-1]
    if not shown:
        raise RuntimeError(f"tegrastats shows no rail; it said {last[:200]!r}")
    if lasted_s < seconds:
        raise RuntimeError(
            f"tegrastats ended after {lasted_s:.1f} s of {seconds:g}; it said {last[:200]!r}"
        )
    return {name: sum(watts) / len(watts) for name, watts in shown.items()}
