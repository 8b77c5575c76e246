"""What one way through a link is made of: a token bucket, and sockets that hold little."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

PIECE_BYTES = 8192
BURST_BYTES = 16384
# Else the kernel would hold megabytes, and the queue that is measured would not be the link's.
SOCKET_BUFFER_BYTES = 65536


class Bucket:
    """Lets bytes pass at a rate, in the order in which they asked."""

    def __init__(self, mbit_s: float | None) -> None:
        self._bytes_s = None if mbit_s is None else mbit_s * 1e6 / 8
        self._tokens, self._seen_s = float(BURST_BYTES), time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self, size: int) -> None:
        """Wait until so many bytes may pass."""
        if self._bytes_s is None:
            return
        async with self._turn:
            now_s = time.monotonic()
            grown = self._tokens + (now_s - self._seen_s) * self._bytes_s
            self._tokens, self._seen_s = min(BURST_BYTES, grown) - size, now_s
            if self._tokens < 0:
                await asyncio.sleep(-self._tokens / self._bytes_s)


class Direction:
    """One way through the link."""

    def __init__(self, mbit_s: float | None, delay: Callable[[], float], held: int) -> None:
        self.bucket = Bucket(mbit_s)
        self.delay = delay
        self.pieces = max(2, held // PIECE_BYTES)
        self.passed = self.queued = 0


def prepare(of: socket.socket) -> None:
    """Short buffers; small packets at once, which asyncio does for its own sockets only."""
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        of.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)


def reset(writer: asyncio.StreamWriter) -> None:
    """Drop a connection without the usual farewell, so that the peer knows at once."""
    of = writer.get_extra_info("socket")
    with suppress(OSError):  # already gone
        of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
