"""Services as child processes, for experiments and tests on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Self

from mllm_sched.pipeline.service import READY

START_TIMEOUT_S = 120.0


class ServiceProcess:
    """A service in a process of its own.

    Its command is given ``--parent`` with this process, and has to end with it.

    Raises
    ------
    RuntimeError
        On ``start``, if it runs already, or does not come to listen; with its last words.
    """

    def __init__(self, *command: str) -> None:
        self._command = command
        self._host, self._port = "", 0
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """``HOST:PORT``; the same after a restart."""
        return f"{self._host}:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it listens."""
        self.begin()
        self.wait()
        return self

    def begin(self) -> None:
        """Start it without waiting, so that several may load at once."""
        if self._process:
            raise RuntimeError(f"it runs already, as process {self.pid}; stop it first")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when it stops)
        self._process = subprocess.Popen(
            [*self._whole_command(), "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the side that asks
        )

    def wait(self) -> None:
        """Wait until it listens."""
        assert self._process and self._process.stdout
        killer = threading.Timer(START_TIMEOUT_S, self._process.kill)
        killer.start()
        line = self._process.stdout.readline()
        killer.cancel()
        if not line.startswith(READY):
            words = self.log()
            self.kill()
            raise RuntimeError(f"it did not start: {' '.join(words[-1:])}")
        self._host, _, port = line.removeprefix(READY).strip().rpartition(":")
        self._port = int(port)

    def log(self) -> list[str]:
        """Lines of its standard error so far."""
        assert self._log
        self._log.flush()
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self._end(force=True)

    def stop(self) -> None:
        """End it gracefully. Stopping twice does nothing."""
        self._end(force=False)

    def _whole_command(self) -> Sequence[str]:
        return self._command

    def _end(self, *, force: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if force:
            process.kill()
        else:
            process.terminate()
        process.wait()
        for stream in (process.stdout, self._log):
            if stream:
                stream.close()


class NodeProcess(ServiceProcess):
    """A node of the pipeline, with options of ``python -m mllm_sched.pipeline.llm_server``.

    Port 0 takes a free one, and the same again after a restart.

    Examples
    --------
    >>> with NodeProcess("--model", "small-llava") as node:  # doctest: +SKIP
    ...     client = EdgeClient(node.address)
    """

    def __init__(self, *options: str, port: int = 0) -> None:
        super().__init__(sys.executable, "-m", "mllm_sched.pipeline.llm_server", *options)
        self._port = port

    def _whole_command(self) -> Sequence[str]:
        return [*self._command, "--port", str(self._port)]
