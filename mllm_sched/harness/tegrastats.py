"""Reads what NVIDIA's ``tegrastats`` prints, to check the harness against it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path

from mllm_sched.harness.ina3221 import NOT_CONNECTED

PROGRAM = "usr/bin/tegrastats"

# Newer releases write the unit, older ones do not: "VDD_IN 4220mW/4220mW", "VDD_IN 4220/4220". A
# rail that is off may show a step below zero: "VDD_CPU_CV -398mW/-398mW".
_RAIL = re.compile(r"\b(?P<name>[A-Z][A-Z0-9_]+) (?P<now>-?\d+)(?:mW)?/-?\d+(?:mW)?(?=\s|$)")
_RAM = re.compile(r"RAM \d+/\d+MB")  # of every line


def parse(line: str) -> dict[str, float]:
    """Watts now of every rail in a line; ValueError if it is none of tegrastats'.

    >>> parse("RAM 2/8MB GR3D_FREQ 7% cpu@41.5C VDD_IN 4220mW/4100mW")
    {'VDD_IN': 4.22}
    """
    if not _RAM.search(line):
        raise ValueError(f"no line of tegrastats: {line.strip()[:80]!r}")
    shown = {rail["name"]: int(rail["now"]) / 1000 for rail in _RAIL.finditer(line)}
    shown.pop(NOT_CONNECTED, None)
    return shown


def mean_power(root: Path, seconds: float, interval_ms: int = 100) -> dict[str, float]:
    """Mean watts of every rail, as the program shows them over some seconds.

    Its readings come at equal steps, so a periodic load may beat against them. RuntimeError with
    its last line if it shows no rail (it shows them to root only), or ends early.
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
            for name, watts in parse(line).items():
                shown[name].append(watts)
    last = (told.strip().splitlines() or ["nothing"])[-1]
    if not shown:
        raise RuntimeError(f"tegrastats shows no rail; it said {last[:200]!r}")
    if lasted_s < seconds:
        raise RuntimeError(
            f"tegrastats ended after {lasted_s:.1f} s of {seconds:g}; it said {last[:200]!r}"
        )
    return {name: sum(watts) / len(watts) for name, watts in shown.items()}
