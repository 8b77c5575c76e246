"""A service behind gRPC: served here until a signal, or in a child process.

Start, health check, graceful end, and the status of an error are the same for nodes, agents and
fronts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any, Protocol, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from mllm_sched.pipeline.jobs import RefusedError
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.wire import MismatchError
from mllm_sched.process_setup import leave_out_loaded

log = logging.getLogger(__name__)

READY = "listening on"
SERVICE = "mllm_sched.pipeline.Node"
SPARE_CALLS = 16  # beyond the limit of requests: to be refused politely, described, checked
GRACE_S = 10.0
LARGEST_PIECE = 1 << 20
START_TIMEOUT_S = 120.0


class Service(Protocol):
    """A servicer of the node's protocol that can be served."""

    limits: Limits
    security: Security

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; finish what was begun within ``grace_s``."""

    def close(self) -> None:
        """Release what it holds; no call comes any more."""


class Checks(health.HealthServicer):
    """The health check without ``Watch``, whose streams would hold places for ever."""

    async def Watch(self, request: Any, context: Any) -> None:
        """Not served; a client that knows the protocol does not ask again."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


async def serve(
    service: Service,
    host: str,
    port: int,
    *,
    add: Callable[[grpc.aio.Server], None] = lambda server: None,
    names: Sequence[str] = (SERVICE,),
) -> None:
    """Serve until SIGTERM or SIGINT; see ``listening``. Prints its address once it listens."""
    leave_out_loaded()
    async with listening(service, host, port, add=add, names=names) as bound:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        print(f"{READY} {host}:{bound}", flush=True)
        await stopped.wait()


@asynccontextmanager
async def listening(
    service: Service,
    host: str,
    port: int,
    *,
    add: Callable[[grpc.aio.Server], None] = lambda server: None,
    names: Sequence[str] = (SERVICE,),
) -> AsyncIterator[int]:
    """Serve inside the block; at its end, finish what was begun, for ten seconds at most.

    ``add`` adds further servicers; ``names`` are the services of the health check. Yields the port,
    a free one for 0. Raises OSError if the address is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", LARGEST_PIECE),
            ("grpc.so_reuseport", 0),  # two services on one port would share its requests
        ],
        maximum_concurrent_rpcs=service.limits.requests + SPARE_CALLS,
    )
    checks = Checks()
    rpc.add_NodeServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    add(server)
    address, credentials = f"{host}:{port}", service.security.server_credentials()
    try:
        bound = (
            server.add_secure_port(address, credentials)
            if credentials
            else server.add_insecure_port(address)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    await server.start()
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield bound
    finally:
        await checks.enter_graceful_shutdown()
        await service.drain(GRACE_S)
        await server.stop(grace=1.0)
        await _closed(service)


async def _closed(service: Service) -> None:
    """Close it in a thread of its own; what hangs is not waited for."""
    closing = threading.Thread(target=service.close, daemon=True)
    ends_s = time.monotonic() + GRACE_S
    closing.start()
    while closing.is_alive() and time.monotonic() < ends_s:
        await asyncio.sleep(0.02)


def deadline_of(context: Any, longest_s: float) -> float:
    """The caller's deadline, at most ``longest_s`` from now, on the loop's clock."""
    left_s = context.time_remaining()
    left_s = longest_s if left_s is None else min(left_s, longest_s)
    return asyncio.get_running_loop().time() + left_s


def code_of(error: Exception) -> grpc.StatusCode:
    """The status of an error."""
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, MismatchError):
        return grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, ValueError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, TimeoutError):  # of an upload: sent again, it may succeed
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL


async def abort(context: Any, error: Exception) -> None:
    """End a call with the status of an error; a defect is described in the log alone."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL and not isinstance(error, RefusedError):
        log.error("a request failed", exc_info=error)
        await context.abort(code, "the node failed; see its log")
    text = str(error) or "the message came too slowly, or again by another connection"
    # Text that a caller sent may be in it, and gRPC sends no status at all for some of that.
    await context.abort(code, text.encode("unicode_escape").decode())


class ServiceProcess:
    """A service as a child process, which is told its parent (``--parent``) and ends with it.

    ``port`` becomes an option of the command; 0 is a free one, the same again after a restart.
    """

    def __init__(self, *command: str, port: int | None = None) -> None:
        self._command, self._port = command, port
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self.address = ""
        """``HOST:PORT``, once it listens."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

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
        """Start it and wait until it listens.

        Raises RuntimeError if it runs already, or, with its last words, if it does not come to
        listen.
        """
        self.begin()
        self.wait()
        return self

    def begin(self) -> None:
        """Start it without waiting, so that several may load at once."""
        if self._process:
            raise RuntimeError(f"it runs already, as process {self.pid}; stop it first")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when it stops)
        place = [] if self._port is None else ["--port", str(self._port)]
        self._process = subprocess.Popen(
            [*self._command, *place, "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={"HF_HUB_OFFLINE": "1", **os.environ},  # models are files, unless somebody says so
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
        self.address = line.removeprefix(READY).strip()
        if self._port is not None:
            self._port = int(self.address.rpartition(":")[2])

    def log(self) -> list[str]:
        """Lines of its standard error so far."""
        assert self._log
        self._log.flush()
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self._end(subprocess.Popen.kill)

    def stop(self) -> None:
        """End it gracefully. Stopping twice does nothing."""
        self._end(subprocess.Popen.terminate)

    def _end(self, how: Callable[[subprocess.Popen[str]], None]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        how(process)
        process.wait()
        for stream in (process.stdout, self._log):
            if stream:
                stream.close()


class NodeProcess(ServiceProcess):
    """A node of the pipeline: ``mllm-sched serve-llm``, or ``edge --listen``, with options."""

    def __init__(self, *command: str, port: int = 0) -> None:
        super().__init__(sys.executable, "-m", "mllm_sched.cli", *command, port=port)
