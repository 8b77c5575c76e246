"""Runs encoders by name in a process of their own, over and over, and says what the calls took.

What is asked of it, in the messages of ``child.py``:

    {"do": "open", "encoder": ..., "component": ..., "precision": ..., ...}
    {"do": "run", ..., "calls": 1, "seconds": 10.0, "load": 1.0}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mllm_sched.harness.calls import Calls
from mllm_sched.harness.child import Child, serve

OPEN_TIMEOUT_S = 1800.0  # TensorRT takes minutes to build an engine, and longer on a slow clock
WHAT = ("encoder", "component", "precision", "threads", "batch", "seed", "cache")


class Worker(Child):
    """The side that asks; the command is by default what runs this module."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", __name__)) -> None:
        super().__init__(command)


class Encoders:
    """The side that answers: encoders that were opened once stay open."""

    def __init__(self) -> None:
        self._opened: dict[str, tuple[Callable[[], Any], Any]] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked; any exception is the answer's error."""
        what = {key: value for key, value in request.items() if key in WHAT}
        key = json.dumps(what, sort_keys=True)
        if key not in self._opened:
            from mllm_sched.pipeline.sessions import open_encoder  # a second to import

            self._opened[key] = open_encoder(**what)
        call, facts = self._opened[key]
        if request["do"] == "open":
            return facts
        return _run(call, request["calls"], request["seconds"], request["load"])


def _run(call: Callable[[], Any], calls: int, seconds: float, load: float) -> dict[str, Any]:
    """Call the encoder some times, and for some seconds at least; what the calls took.

    With a load below 1 each call is followed by a pause, so that the component is busy for that
    share of the time; the pause is part of what the task takes.
    """
    pause = 1 / load - 1
    latencies: list[float] = []
    began = time.perf_counter()
    ended = began
    while len(latencies) < calls or ended - began < seconds:
        called = ended
        call()
        if pause:
            time.sleep(pause * (time.perf_counter() - called))
        ended = time.perf_counter()
        latencies.append(ended - called)
    return asdict(Calls.of(latencies))


if __name__ == "__main__":
    encoders = Encoders()
    serve(lambda: lambda request, data: (encoders.answer(request), b""))
