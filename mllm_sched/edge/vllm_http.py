"""HTTP to a server that streams: who may see it, and when it ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import httpx

from mllm_sched.pipeline.security import Security, is_loopback


def http_client(url: str, security: Security, *, is_open: bool = False) -> httpx.Client:
    """A client of one server, whose paths follow ``url``.

    It sends the token as a bearer's, follows no redirect, and asks no proxy of the environment, so
    that nobody else sees what it sends.

    Raises
    ------
    ValueError
        For a URL that is none, or one in the clear to another machine, unless ``is_open`` says that
        this is meant.
    """
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url}: expected http://HOST:PORT or https://HOST:PORT")
    if parts.scheme == "http" and not is_loopback(parts.host) and not is_open:
        raise ValueError(f"{url}: features and key would cross the network in the clear; use https")
    return httpx.Client(
        base_url=url,
        headers={**dict(security.metadata), "accept-encoding": "identity"},
        verify=_tls(security),
        trust_env=False,
        follow_redirects=False,
    )


def _tls(security: Security) -> ssl.SSLContext | bool:
    if security.certificate is None:
        return True
    assert security.key and security.authority
    context = ssl.create_default_context(cafile=security.authority)
    context.load_cert_chain(security.certificate, security.key)
    return context


@contextlib.contextmanager
def cut_off(response: httpx.Response, after_s: float) -> Iterator[None]:
    """End the connection after so long: httpx's own limit is on each read, not on all of them.

    Whoever reads at that moment gets an error of httpx's transport.
    """
    connection = response.extensions["network_stream"].get_extra_info("socket")

    def cut() -> None:
        with contextlib.suppress(OSError):  # it ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_all(response: httpx.Response, most_bytes: int) -> bytes:
    """A response's body, of a longer one the beginning."""
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) >= most_bytes:
            break
    return body[:most_bytes]
