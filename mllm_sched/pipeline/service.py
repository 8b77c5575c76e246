"""Serving behind gRPC: start, health check, graceful end, and the status of an error."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

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


class Service(Protocol):
    """A servicer of the node's protocol that can be served."""

    limits: Limits
    security: Security

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what was begun, within so many seconds."""

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

    ``add`` adds further servicers to the server, ``names`` are those of all services for the
    health check. Yields the port, a free one for 0. Raises OSError if the address is taken.
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
