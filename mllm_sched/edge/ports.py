"""Ports of this machine for services that must come back at the address they had."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

FIRST = 10_000  # below are those that well-known services use
BLOCK = 64  # of a process's own, roughly
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_drawn = itertools.count()


def free_port() -> int:
    """A port of the loopback that nothing listens on, another with every call.

    It lies below those that the system gives to every connection and to whoever asks for any port,
    so that none of these takes it before its service listens, or while that is down. Processes
    begin at different places, so that two that ask at once hardly get the same.
    """
    places = _first_ephemeral() - FIRST
    begin = os.getpid() * BLOCK
    for _ in range(max(places, 0)):
        port = FIRST + (begin + next(_drawn)) % places
        if _is_free(port):
            return port
    raise OSError(f"no free port from {FIRST} to {FIRST + places}")


def _first_ephemeral() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except OSError:
        return 32768  # Linux's own choice; other systems begin higher


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
