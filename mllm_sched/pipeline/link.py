"""A network link of given rate and delay, in user space: a TCP proxy that needs no root.

Each direction has one token bucket that all connections share, as an uplink does, and a queue in
which every piece waits out the delay. Both are short, so that a sender notices the link at once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

PIECE_BYTES = 8192
BURST_BYTES = 16384
QUEUE_BYTES = 65536
# Else the kernel would hold megabytes, and the queue that is measured would not be the link's.
SOCKET_BUFFER_BYTES = 65536

_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass(frozen=True)
class Passed:
    """Bytes that went through a link so far."""

    up_bytes: int
    down_bytes: int


class Direction:
    """One way through the link: a token bucket, first come, first served."""

    def __init__(self, mbit_s: float | None) -> None:
        self.passed = 0
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


class Link:
    """A link to one address, open within a ``with`` block.

    Rates are towards the target, ``HOST:PORT``, and back, unlimited by default; the delay is that
    of each way. Raises ValueError if any is invalid.
    """

    def __init__(
        self,
        target: str,
        *,
        up_mbit_s: float | None = None,
        down_mbit_s: float | None = None,
        delay_s: float = 0.0,
    ) -> None:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"target={target!r}: expected HOST:PORT")
        for name, rate in (("up_mbit_s", up_mbit_s), ("down_mbit_s", down_mbit_s)):
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"{name}={rate}: expected above 0, or None for no limit")
        if not 0 <= delay_s < float("inf"):
            raise ValueError(f"delay_s={delay_s}: expected 0 or more")
        self._host, self._port = host, int(port)
        self._rates = (up_mbit_s, down_mbit_s)
        self._delay_s = delay_s
        self._cut_until_s = 0.0
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        self._address = ""

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="link", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure:
            self._thread = None
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections and end. Closing twice does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    @property
    def address(self) -> str:
        """``HOST:PORT`` to connect to instead of the target; RuntimeError if it is not open."""
        if self._thread is None:
            raise RuntimeError("the link is not open: use it in a with block")
        return self._address

    def passed(self) -> Passed:
        """Bytes let through so far."""
        return Passed(self._up.passed, self._down.passed)

    def cut(self, seconds: float) -> None:
        """Lose the link for a time: connections stay, and nothing passes until it is back."""
        self._cut_until_s = time.monotonic() + seconds

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except OSError as error:  # no socket to be had
            self._failure = error
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._up, self._down = (Direction(mbit_s) for mbit_s in self._rates)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        _shorten_buffers(listener)  # accepted connections inherit it
        server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE_BYTES)
        self._address = "{}:{}".format(*listener.getsockname()[:2])
        ready.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._writers):
            _reset(writer)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._outage()
            await self._join(reader, writer)
        except* OSError:  # refused, or reset by either side: the other side sees the same
            _reset(writer)
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outward = socket.socket()
        outward.setblocking(False)
        _shorten_buffers(outward)
        try:
            await self._loop.sock_connect(outward, (self._host, self._port))
        except OSError:
            outward.close()
            raise
        far_reader, far_writer = await asyncio.open_connection(sock=outward, limit=PIECE_BYTES)
        self._writers.add(far_writer)
        there: _Queue = asyncio.Queue(QUEUE_BYTES // PIECE_BYTES)
        back: _Queue = asyncio.Queue(QUEUE_BYTES // PIECE_BYTES)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fill(reader, there, self._up))
                tasks.create_task(self._empty(there, far_writer, self._up))
                tasks.create_task(self._fill(far_reader, back, self._down))
                tasks.create_task(self._empty(back, writer, self._down))
        finally:
            _reset(far_writer)
            self._writers.discard(far_writer)

    async def _fill(self, reader: asyncio.StreamReader, queue: _Queue, way: Direction) -> None:
        while data := await reader.read(PIECE_BYTES):
            await way.take(len(data))
            await queue.put((time.monotonic() + self._delay_s, data))
        await queue.put((0.0, b""))

    async def _empty(self, queue: _Queue, writer: asyncio.StreamWriter, way: Direction) -> None:
        while True:
            due_s, data = await queue.get()
            if not data:
                writer.write_eof()
                return
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._outage()
            writer.write(data)
            await writer.drain()
            way.passed += len(data)

    async def _outage(self) -> None:
        while (left_s := self._cut_until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.01))


def _shorten_buffers(of: socket.socket) -> None:
    """Short buffers; small packets at once, which asyncio does for its own sockets only."""
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        of.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Drop a connection with RST, so that the peer notices at once."""
    of = writer.get_extra_info("socket")
    with suppress(OSError):  # already gone
        of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
