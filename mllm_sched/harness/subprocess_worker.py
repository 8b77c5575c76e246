"""A subprocess that runs encoders: one that crashes or hangs stops nothing else.

The two sides talk over the process's standard input and output. A message is a line of JSON, and
behind it as many bytes as the line announces; there may be none:

    {"do": "open", "encoder": ..., "component": ..., "precision": ..., ..., "bytes": 0}
    {"do": "run", ..., "calls": 1, "seconds": 10.0, "load": 1.0, "bytes": 0}

Each is answered by one message: ``{"ok": ..., "bytes": ...}`` or ``{"error": "..."}``.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from mllm_sched.endings import end_with
from mllm_sched.garbage import leave_out_loaded
from mllm_sched.harness.reading import HarnessError


@dataclass(frozen=True)
class Calls:
    """Latencies of some calls; a window of a fast encoder holds hundreds of thousands.

    Attributes
    ----------
    count
        How many.
    mean_s, sd_s, median_s, longest_s
        Of their latencies; the scatter of a single call is 0.
    """

    count: int
    mean_s: float
    sd_s: float
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> Calls:
        """Sum up latencies, at least one.

        Examples
        --------
        >>> Calls.of([0.1, 0.1, 0.4]).median_s
        0.1
        """
        return cls(
            len(latencies_s),
            statistics.fmean(latencies_s),
            statistics.stdev(latencies_s) if len(latencies_s) > 1 else 0.0,
            statistics.median(latencies_s),
            max(latencies_s),
        )

    @property
    def total_s(self) -> float:
        """Time spent in all calls."""
        return self.count * self.mean_s


def pooled_sd_s(parts: Sequence[Calls]) -> float:
    """Scatter of single calls over several windows, whose means may differ."""
    count = sum(part.count for part in parts)
    if count < 2:
        return 0.0
    mean_s = sum(part.total_s for part in parts) / count
    squares = sum(
        (part.count - 1) * part.sd_s**2 + part.count * (part.mean_s - mean_s) ** 2 for part in parts
    )
    return math.sqrt(squares / (count - 1))


PIECE = 1 << 16
END_S = 5.0  # that a process which closed its pipes may take to end


class WorkerError(HarnessError):
    """An encoder that raised, crashed or did not answer; the message says which."""


class CrashError(WorkerError):
    """One whose process ended."""


class HangError(WorkerError):
    """One that did not answer in ``after_s`` seconds, and was killed."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"the encoder hangs: no answer in {after_s:g} s; killed")
        self.after_s = after_s


class Child:
    """The side that asks. The process is started when it is first needed, and again after a crash.

    Parameters
    ----------
    command
        What runs the other side, which calls ``serve``.
    environment
        Variables that it gets beside this process's own.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs the encoders; None while there is none."""
        return self._process.pid if self._process else None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        """Send one request and wait for its answer; raises as ``exchange``."""
        return self.exchange(request, b"", timeout_s)[0]

    def exchange(
        self, request: dict[str, Any], data: bytes, timeout_s: float
    ) -> tuple[Any, memoryview]:
        """Send one request with bytes behind it; the answer, and the bytes behind that.

        Raises
        ------
        WorkerError
            If the encoder raised.
        CrashError
            If the process died, with the signal and its last words.
        HangError
            If it did not answer in time; it is then killed.
        """
        self.start()
        ends_s = time.monotonic() + timeout_s
        try:
            self._send(json.dumps({**request, "bytes": len(data)}).encode() + b"\n", ends_s)
            self._send(data, ends_s)
            line, rest = self._line(ends_s)
            answer = json.loads(line)
            behind = self._bytes(int(answer.get("bytes", 0)), rest, ends_s)
        except TimeoutError:
            self.close()
            raise HangError(timeout_s) from None
        except (BrokenPipeError, EOFError):
            raise CrashError(self._obituary()) from None
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"], behind

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._process:
            return
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **self._environment},
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is for the side that asks
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)  # else one that hangs holds this side

    def kill(self) -> None:
        """Kill the process, if there is one; whoever waits for its answer is told."""
        if process := self._process:
            process.kill()

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

    def _send(self, data: bytes, ends_s: float) -> None:
        assert self._process and self._process.stdin
        pipe, left = self._process.stdin.fileno(), memoryview(data)
        while left:
            _wait(pipe, select.POLLOUT, ends_s)
            try:
                left = left[os.write(pipe, left[:PIECE]) :]
            except BlockingIOError:  # room for less than was offered
                continue

    def _line(self, ends_s: float) -> tuple[bytes, bytes]:
        """The next line, however it comes in pieces, and what came with its end."""
        pieces = [self._piece(ends_s)]
        while b"\n" not in pieces[-1]:
            pieces.append(self._piece(ends_s))
        line, _, rest = b"".join(pieces).partition(b"\n")
        return line, rest

    def _bytes(self, count: int, begun: bytes, ends_s: float) -> memoryview:
        whole, have = bytearray(count), len(begun)
        whole[:have] = begun
        while have < count:
            piece = self._piece(ends_s)
            whole[have : have + len(piece)] = piece
            have += len(piece)
        return memoryview(whole)

    def _piece(self, ends_s: float) -> bytes:
        assert self._process and self._process.stdout
        pipe = self._process.stdout.fileno()
        _wait(pipe, select.POLLIN, ends_s)
        if piece := os.read(pipe, PIECE):
            return piece
        raise EOFError

    def _obituary(self) -> str:
        """How the process ended, and the last line it wrote."""
        assert self._process and self._log
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # it hung while it ended
            self._process.kill()
            status = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        self.close()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the encoder crashed: {how}" + (f": {last}" if last else "")


def _wait(pipe: int, event: int, ends_s: float) -> None:
    """Until the pipe is ready, or gone; TimeoutError if that takes too long."""
    poll = select.poll()  # unlike select(), it takes a process with thousands of open files
    poll.register(pipe, event)
    if not poll.poll(1000 * max(0.0, ends_s - time.monotonic())):
        raise TimeoutError


def serve(open_side: Callable[[], Callable[[dict[str, Any], bytes], tuple[Any, bytes]]]) -> None:
    """The side that answers, until there are no more requests, or whoever asks has died.

    Parameters
    ----------
    open_side
        Makes what answers a request and the bytes behind it; any exception is its answer's error.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not reach the answers
    end_with(os.getppid())
    answer = open_side()
    leave_out_loaded()
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            said, data = answer(request, sys.stdin.buffer.read(request.pop("bytes")))
            told = {"ok": said, "bytes": len(data)}
        except Exception as error:  # whatever an encoder raises, the other side is told
            told, data = {"error": f"{type(error).__name__}: {error}"}, b""
        answers.write(json.dumps(told).encode() + b"\n" + data)
        answers.flush()


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
            from mllm_sched.pipeline.onnx import open_encoder  # a second to import

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
