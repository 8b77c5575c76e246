"""A node as a process: started, announced, and ended with what it had begun."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from mllm_sched.endings import end_with
from mllm_sched.pipeline.checkpoints import load_encoders, load_language
from mllm_sched.pipeline.limits import Limits, Slowdown
from mllm_sched.pipeline.node import Node
from mllm_sched.pipeline.options import add_options, check_options, security_of
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.security import check_host

READY = "listening on"
SERVICE = "mllm_sched.pipeline.Node"
SPARE_CALLS = 16  # beyond the limit of requests: to be refused politely, described, checked
GRACE_S = 10.0
LARGEST_PIECE = 1 << 20


class Checks(health.HealthServicer):
    """The health check, without the streams of ``Watch``: they would hold places for ever."""

    async def Watch(self, request: Any, context: Any) -> None:
        """Not served; a client that knows the protocol does not ask again."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


async def serve(node: Node, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun, for ten seconds at most.

    Prints one line with the address once it listens; ``port`` 0 takes a free one.

    Raises
    ------
    OSError
        If the address cannot be listened on.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", LARGEST_PIECE),
            ("grpc.so_reuseport", 0),  # two nodes on one port would share its requests
        ],
        maximum_concurrent_rpcs=node.limits.requests + SPARE_CALLS,
    )
    checks = Checks()
    rpc.add_NodeServicer_to_server(node, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    address = f"{host}:{port}"
    credentials = node.security.server_credentials()
    try:
        bound = (
            server.add_secure_port(address, credentials)
            if credentials
            else server.add_insecure_port(address)
        )
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    await server.start()
    for service in ("", SERVICE):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"{READY} {host}:{bound}", flush=True)
    await stopped.wait()
    await checks.enter_graceful_shutdown()
    await node.drain(GRACE_S)
    await server.stop(grace=1.0)
    node.compute.close()


def run_node(
    options: argparse.Namespace, *, encoders: Sequence[str] | None = None, language: bool = True
) -> None:
    """Load the halves and serve them.

    Parameters
    ----------
    encoders
        Modalities to hold encoders for, all if empty; None for no encoders.
    language
        Whether to hold the LLM.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    check_options(options)
    security = security_of(options)
    check_host(options.host, security, is_open=options.open)
    torch.set_num_threads(options.threads)
    what = {"seed": options.seed, "dtype": options.dtype}
    edge = None if encoders is None else load_encoders(options.model, encoders, **what)
    llm = load_language(options.model, **what) if language else None
    for half, held in (("encoders", edge), ("LLM", llm)):
        if held:
            print(f"{half}: {held.memory_bytes / 1e6:.1f} MB of weights", file=sys.stderr)

    async def main() -> None:
        node = Node(
            options.model,
            edge,
            llm,
            limits=Limits(options.limit, options.max_bytes, idle_s=options.idle),
            slowdown=Slowdown(options.encoders_slowdown, options.llm_slowdown),
            security=security,
        )
        await serve(node, options.host, options.port)

    asyncio.run(main())


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a node with any halves; what ``mllm-sched serve-llm`` and ``edge`` are made of."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_options(parser)
    parser.add_argument(
        "--encoders", nargs="*", metavar="MODALITY", help="hold these; all if empty"
    )
    parser.add_argument("--no-llm", action="store_true", help="hold no LLM")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process has ended")
    options = parser.parse_args(argv)
    if options.parent:
        end_with(options.parent)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_node(options, encoders=options.encoders, language=not options.no_llm)


if __name__ == "__main__":
    main()
