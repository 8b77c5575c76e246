"""A child process that runs encoders: one that crashes or hangs stops nothing else.

Parent and child talk over the child's standard input and output. A message is a line of JSON, and
behind it as many bytes as the line announces; there may be none:

    {"do": "open", ..., "bytes": 0}    be ready to call an encoder; answered by facts about it
    {"do": "run", "calls": 1, "seconds": 10.0, "load": 1.0, "bytes": 0}    call it

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
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from mllm_sched.harness.reading import HarnessError
from mllm_sched.process_setup import end_with, leave_out_loaded

PIECE = 1 << 16
END_S = 5.0  # that a process which closed its pipes may take to end
KILL_AFTER_S = 0.1  # that closing waits for a request under way
CALL_TIMEOUT_S = 60.0
OPEN_TIMEOUT_S = 1800.0  # TensorRT takes minutes to build an engine, and longer on a slow clock


@dataclass(frozen=True)
class Calls:
    """Latencies of some calls, summed up; the standard deviation of a single call is 0."""

    count: int
    mean_s: float
    sd_s: float
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> Calls:
        """Sum up latencies, at least one."""
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


def timed_calls(call: Callable[[], object], calls: int, seconds: float, load: float) -> Calls:
    """Call so many times at least, and for so many seconds at least.

    With a load below 1 each call is followed by a pause, so that the component is busy for that
    share of the time; the pause is part of the latency.
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
    return Calls.of(latencies)


class WorkerError(HarnessError):
    """An encoder that raised, crashed or did not answer; the message says which."""


class CrashError(WorkerError):
    """An encoder whose process ended."""


class HangError(WorkerError):
    """An encoder that did not answer in ``after_s`` seconds, and was killed."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"the encoder hangs: no answer in {after_s:g} s; killed")
        self.after_s = after_s


class Child:
    """The parent's side. The process starts with the first request, and again after a crash.

    ``command`` runs the other side, which calls ``serve``; ``environment`` is added to that of
    this process.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._environment = environment or {}
        self._turn = threading.RLock()  # held by who uses the process
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return self._process.pid if self._process else None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        """Send one request and wait for its answer; raises as ``exchange``."""
        return self.exchange(request, b"", timeout_s)[0]

    def exchange(
        self, request: dict[str, Any], data: bytes, timeout_s: float
    ) -> tuple[Any, memoryview]:
        """Send one request with bytes behind it; the answer, and the bytes behind that.

        Raises WorkerError if the encoder raised, CrashError if the process died, HangError if it
        did not answer in time and was killed, and ValueError after ``close``.
        """
        with self._turn:
            self.start()
            ends_s = time.monotonic() + timeout_s
            try:
                line = json.dumps({**request, "bytes": len(data)}).encode() + b"\n"
                self._send(line, ends_s)
                self._send(data, ends_s)
                answer, behind = self._receive(ends_s)
            except TimeoutError:
                self._end()
                raise HangError(timeout_s) from None
            except (BrokenPipeError, EOFError):
                raise CrashError(self._obituary()) from None
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["ok"], behind

    def start(self) -> None:
        """Start the process, unless it runs; ValueError after ``close``."""
        if self._closed:
            raise ValueError("the encoders' process was closed; open the device again")
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
            start_new_session=True,  # a Ctrl-C is for the parent
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)  # else one that hangs holds the parent

    def close(self) -> None:
        """End the process for good. Closing twice does nothing.

        A request under way in another thread ends with a CrashError.
        """
        self._closed = True
        while not self._turn.acquire(timeout=KILL_AFTER_S):
            if process := self._process:
                process.kill()
        try:
            self._end()
        finally:
            self._turn.release()

    def _end(self) -> None:
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

    def _receive(self, ends_s: float) -> tuple[dict[str, Any], memoryview]:
        received, end = bytearray(), -1
        while end < 0:
            received += self._piece(ends_s)
            end = received.find(b"\n")
        answer = json.loads(received[:end])
        while len(received) <= end + answer.get("bytes", 0):
            received += self._piece(ends_s)
        return answer, memoryview(received)[end + 1 :]

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
        self._end()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the encoder crashed: {how}" + (f": {last}" if last else "")


class EncoderWorker(Child, ABC):
    """A child that runs encoders, as its parent sees it.

    Parameters
    ----------
    timeout_s
        For a single call at full load, after which it counts as hanging.
    open_timeout_s
        For opening an encoder, which may export, load and warm up.
    """

    modalities: Mapping[str, str]  # of the encoders that it runs

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float = CALL_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        for name, seconds in (("timeout_s", timeout_s), ("open_timeout_s", open_timeout_s)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name}={seconds}: expected seconds above 0")
        super().__init__(command, environment)
        self.timeout_s = timeout_s
        self.open_timeout_s = open_timeout_s

    @abstractmethod
    def open(self, how: Mapping[str, Any], items: Sequence[Any] = ()) -> dict[str, Any]:
        """Be ready to call an encoder on a component; facts about it. Raises as ``exchange``."""

    def load(self, hows: Sequence[Mapping[str, Any]]) -> None:
        """Load what can be loaded before the first ``open``."""

    def features(self, items: Sequence[Any]) -> tuple[Any, ...]:
        """What the last call made of the items that were opened; nothing of random input."""
        return ()

    def run(self, calls: int = 1, seconds: float = 0.0, load: float = 1.0) -> Calls:
        """Call the opened encoder; see ``timed_calls``. Raises as ``exchange``."""
        request = {"do": "run", "calls": calls, "seconds": seconds, "load": load}
        return Calls(**self.ask(request, seconds + self.timeout_s * calls / load))


class EncoderServer(ABC):
    """The child's side of an ``EncoderWorker``."""

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
        """Do what is asked; ``serve`` turns an exception into the answer's error."""
        do = request.pop("do")
        if do == "open":
            self._call = None
            self._call, facts = self.open(request, data)
            return facts, b""
        if self._call is None:
            raise ValueError("no encoder was opened to run")
        return asdict(timed_calls(self._call, **request)), b""

    @abstractmethod
    def open(
        self, request: dict[str, Any], data: bytes
    ) -> tuple[Callable[[], object], dict[str, Any]]:
        """A call of the encoder asked for, and facts about it."""


def _wait(pipe: int, event: int, ends_s: float) -> None:
    """Until the pipe is ready, or gone; TimeoutError if that takes too long."""
    poll = select.poll()  # unlike select(), it takes a process with thousands of open files
    poll.register(pipe, event)
    if not poll.poll(1000 * max(0.0, ends_s - time.monotonic())):
        raise TimeoutError


def serve(open_side: Callable[[], Callable[[dict[str, Any], bytes], tuple[Any, bytes]]]) -> None:
    """The child's side, until there are no more requests, or the parent has died.

    ``open_side`` makes what answers a request and the bytes behind it; any exception of that is
    its answer's error.
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
        except Exception as error:  # whatever an encoder raises, the parent is told
            told, data = {"error": f"{type(error).__name__}: {error}"}, b""
        answers.write(json.dumps(told).encode() + b"\n" + data)
        answers.flush()
