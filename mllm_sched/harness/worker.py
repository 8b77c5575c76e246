"""Runs encoders in a process of their own, so that one that crashes or hangs stops nothing else.

The two sides talk in lines of JSON over the process's standard input and output:

    {"do": "open", "encoder": ..., "component": ..., "precision": ..., ...}
    {"do": "run", ..., "calls": 1, "seconds": 10.0, "load": 1.0}

Each is answered by one line, ``{"ok": ...}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO, Any

from mllm_sched.endings import end_with
from mllm_sched.harness.calls import Calls
from mllm_sched.harness.reading import HarnessError

OPEN_TIMEOUT_S = 1800.0  # TensorRT takes minutes to build an engine, and longer on a slow clock
WHAT = ("encoder", "component", "precision", "threads", "batch", "seed", "cache")
PIECE = 65536


class WorkerError(HarnessError):
    """An encoder that raised, crashed or did not answer; the message says which."""


class Worker:
    """The side that asks. The process is started when it is first needed, and again after a crash.

    Parameters
    ----------
    command
        What runs the other side; by default this module.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", __name__)) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs the encoders; None while there is none."""
        return self._process.pid if self._process else None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        """Send one request and wait for its answer.

        Raises
        ------
        WorkerError
            If the encoder raised; if the process died, with the signal and its last words; or if
            it did not answer in time, in which case it is killed.
        """
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise WorkerError(self._obituary()) from None
        answer = json.loads(self._line(process.stdout.fileno(), timeout_s))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """End the process. Closing twice does nothing; a later request starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self._log):
            if pipe:
                pipe.close()

    def _line(self, answers: int, timeout_s: float) -> bytes:
        """The next line, however it comes in pieces."""
        line, ends_s = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            left_s = max(0.0, ends_s - time.monotonic())
            if not select.select([answers], [], [], left_s)[0]:
                self.close()
                raise WorkerError(f"the encoder hangs: no answer in {timeout_s:g} s; killed")
            piece = os.read(answers, PIECE)
            if not piece:
                raise WorkerError(self._obituary())
            line += piece
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is for the side that asks
        )
        return self._process

    def _obituary(self) -> str:
        """How the process ended, and the last line it wrote."""
        assert self._process and self._log
        status = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        self.close()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the encoder crashed: {how}" + (f": {last}" if last else "")


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


def serve() -> None:
    """Answer requests until there are no more, or whoever asks has died."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not reach the answers
    end_with(os.getppid())
    encoders = Encoders()
    for line in sys.stdin:
        try:
            answer = {"ok": encoders.answer(json.loads(line))}
        except Exception as error:  # whatever an encoder raises, the other side is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
