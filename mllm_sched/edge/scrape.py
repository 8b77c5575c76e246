"""Where Prometheus scrapes: ``/metrics`` over HTTP, in a thread of its own."""

from __future__ import annotations

import socket
import socketserver
import threading
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler

from mllm_sched.pipeline.security import is_loopback

REQUEST_S = 5.0  # for a whole request and its answer, however slowly either side goes
AT_ONCE = 16  # connections; more are closed unread


class MetricsServer:
    """Serves the metrics of a registry until it is closed.

    Parameters
    ----------
    registry
        Whose metrics.
    host, port
        To listen on; port 0 takes a free one.
    open_to_all
        Whether others than this machine may read, in the clear.
    request_s
        After which a request is cut off.

    Raises
    ------
    ValueError
        If others could reach the host and ``open_to_all`` does not say that this is meant.
    OSError
        If the address is taken.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        open_to_all: bool = False,
        request_s: float = REQUEST_S,
    ) -> None:
        if not (is_loopback(host) or open_to_all):
            raise ValueError(
                f"metrics on host {host}: others could read them; take a loopback address, "
                "or say open_to_all if that is meant"
            )
        self._server = _Server(registry, host.strip("[]"), port, request_s)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; called again, it does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 2 * AT_ONCE  # else a burst would wait for its packets to be sent again

    def __init__(self, registry: CollectorRegistry, host: str, port: int, request_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._request_s = request_s
        handler: Any = type("Handler", (_Handler,), {"registry": registry, "timeout": request_s})
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, which is cut when its time is over, in whatever state it is."""
        cut = threading.Timer(self._request_s, _cut, [request])
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was cut off is no news."""


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:  # it ended by itself just now
        return


class _Handler(MetricsHandler):
    server_version, sys_version = "mllm-sched", ""

    def do_GET(self) -> None:
        """The metrics, and nothing else."""
        if urlsplit(self.path).path == "/metrics":
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="only /metrics is here")
