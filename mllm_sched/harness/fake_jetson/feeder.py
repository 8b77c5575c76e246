"""Feeds the sensors of an imitated board, until its standard input ends.

A process of its own, so that neither side's work disturbs the other's clock. Values are written
in place through open files: a reader that keeps a file open sees them, as it does in sysfs.
Orders come as lines of JSON: ``{"rail": NAME, "current_ma": 1234 or null}`` for a sensor that
shows one value (null: live again), ``{"rail": NAME, "gone": true or false}``.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import sys
import time
from typing import Any

from mllm_sched.harness.fake_jetson.waveforms import from_facts

# 40 uV of the sensor over the board's shunts of 2 milliohms. Noise of about one step lies on top
# (assumed), and means are right.
STEP_MA = 20


class Rail:
    """One sensor: its waveform, and the file it shows.

    Parameters
    ----------
    facts
        ``path``, ``waveform``, ``millivolts``, and ``milliwatts`` for a file that shows power.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.waveform = from_facts(facts["waveform"])
        self.volts = facts["millivolts"] / 1000
        self.milliwatts = facts["milliwatts"]
        self.path = facts["path"]
        self.fixed_ma: int | None = None
        self.file: int | None = None
        self.vanish(False)

    def vanish(self, gone: bool) -> None:
        """Take the file away, or bring it back. Emptied first: an open reader reads nothing."""
        if not gone:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT)
            self.feed(time.monotonic())
        elif self.file is not None:
            os.ftruncate(self.file, 0)
            os.close(self.file)
            os.unlink(self.path)
            self.file = None

    def feed(self, now_s: float) -> None:
        """Write what the sensor shows now, in as many characters as ever."""
        if self.file is None:
            return
        shown = self.fixed_ma
        if shown is None:
            exact = 1000 * self.waveform.power_w(now_s) / self.volts / STEP_MA
            shown = STEP_MA * math.floor(exact + random.random() + random.uniform(-1, 1))
        if self.milliwatts:
            shown = round(shown * self.volts)
        os.pwrite(self.file, b"%7d\n" % shown, 0)


def obey(line: str, rails: dict[str, Rail]) -> bool:
    """Carry out an order; False at the end of all orders."""
    if not line:
        return False
    order = json.loads(line)
    rail = rails[order["rail"]]
    if "gone" in order:
        rail.vanish(order["gone"])
    else:
        rail.fixed_ma = order["current_ma"]
    print("done", flush=True)
    return True


def main() -> None:
    """Feed the rails that the first line of standard input describes."""
    settings = json.loads(sys.stdin.readline())
    random.seed(settings["seed"])
    rails = {name: Rail(facts) for name, facts in settings["rails"].items()}
    print("feeding", flush=True)
    due_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        for rail in rails.values():
            rail.feed(now_s)
        due_s = max(due_s + settings["period_s"], now_s)
        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, due_s - time.monotonic()))
        if ready and not obey(sys.stdin.readline(), rails):
            return


if __name__ == "__main__":
    main()
