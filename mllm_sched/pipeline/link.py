"""A network link of given rate and delay, in user space: a TCP proxy that needs no root.

Each direction has one token bucket that all connections share, as an uplink does, and a queue in
which every piece waits out the delay. Both are short, so that a sender feels the link at once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np

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


@dataclass(frozen=True)
class Passed:
    """Bytes that went through a link so far."""

    up_bytes: int
    down_bytes: int


class Link:
    """A link to one address, open within a ``with`` block.

    Parameters
    ----------
    target
        ``HOST:PORT`` of what lies behind it.
    up_mbit_s, down_mbit_s
        Rate towards the target, and back; unlimited by default.
    delay_s
        One way, the same for both.
    jitter_s
        Standard deviation of the delay. Nothing is ever overtaken.
    seed
        Of the jitter.
    buffer_bytes
        That each direction of a connection holds beside the kernel's buffers.

    Raises
    ------
    ValueError
        For a rate that is not above 0, a negative delay, or a target without a port.

    Examples
    --------
    >>> with Link("127.0.0.1:50051", up_mbit_s=10, delay_s=0.01) as link:  # doctest: +SKIP
    ...     client = EdgeClient(link.address)
    """

    def __init__(
        self,
        target: str,
        *,
        up_mbit_s: float | None = None,
        down_mbit_s: float | None = None,
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
        seed: int = 0,
        buffer_bytes: int = 65536,
    ) -> None:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"target={target!r}: expected HOST:PORT")
        for name, rate in (("up_mbit_s", up_mbit_s), ("down_mbit_s", down_mbit_s)):
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"{name}={rate}: expected above 0, or None for no limit")
        for name, seconds in (("delay_s", delay_s), ("jitter_s", jitter_s)):
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{name}={seconds}: expected 0 or more")
        self._host, self._port = host, int(port)
        self._rates = (up_mbit_s, down_mbit_s)
        self._delay_s, self._jitter_s = delay_s, jitter_s
        self._rng = np.random.default_rng(seed)
        self._buffer_bytes = buffer_bytes
        self._cut_until_s = 0.0
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        self._address = ""

    def __enter__(self) -> Link:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="link", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure:
            self._thread = None
            raise self._failure
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def queued_bytes(self) -> int:
        """Bytes that the link holds now."""
        return self._up.queued + self._down.queued

    def cut(self, seconds: float) -> None:
        """Lose the link for a time: connections stay, and nothing passes until it is back."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds={seconds}: expected 0 or more")
        self._cut_until_s = time.monotonic() + seconds

    def sever(self) -> None:
        """Reset all connections at once; new ones are let through."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._reset_all)

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except OSError as error:  # no socket to be had
            self._failure = error
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._up = Direction(self._rates[0], self._draw_delay, self._buffer_bytes)
        self._down = Direction(self._rates[1], self._draw_delay, self._buffer_bytes)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        prepare(listener)  # accepted connections inherit it
        server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE_BYTES)
        self._address = "{}:{}".format(*listener.getsockname()[:2])
        ready.set()
        await self._stop.wait()
        server.close()
        self._reset_all()
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
        except OSError:  # refused, or reset by either side: the other side sees the same
            reset(writer)
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outward = socket.socket()
        outward.setblocking(False)
        prepare(outward)
        try:
            await self._loop.sock_connect(outward, (self._host, self._port))
        except OSError:
            outward.close()
            raise
        far_reader, far_writer = await asyncio.open_connection(sock=outward, limit=PIECE_BYTES)
        self._writers.add(far_writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer, self._up))
                both.create_task(self._pump(far_reader, writer, self._down))
        except* OSError as errors:
            raise errors.exceptions[0] from None
        finally:
            reset(far_writer)
            self._writers.discard(far_writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
    ) -> None:
        """Everything that is read, written after its turn and its delay, to the end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(way.pieces)
        try:
            async with asyncio.TaskGroup() as ends:
                ends.create_task(self._fill(reader, queue, way))
                ends.create_task(self._empty(queue, writer, way))
        except* OSError as errors:
            raise errors.exceptions[0] from None
        finally:
            while not queue.empty():
                way.queued -= len(queue.get_nowait()[1])

    async def _fill(
        self,
        reader: asyncio.StreamReader,
        queue: asyncio.Queue[tuple[float, bytes]],
        way: Direction,
    ) -> None:
        due_s = 0.0
        while data := await reader.read(PIECE_BYTES):
            way.queued += len(data)
            await way.bucket.take(len(data))
            due_s = max(due_s, time.monotonic() + way.delay())  # never before its forerunner
            await queue.put((due_s, data))
        await queue.put((0.0, b""))

    async def _empty(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        way: Direction,
    ) -> None:
        while True:
            due_s, data = await queue.get()
            if not data:
                writer.write_eof()
                return
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._outage()
            way.queued -= len(data)
            writer.write(data)
            await writer.drain()
            way.passed += len(data)

    async def _outage(self) -> None:
        while (left_s := self._cut_until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.01))

    def _draw_delay(self) -> float:
        if not self._jitter_s:
            return self._delay_s
        return max(0.0, float(self._rng.normal(self._delay_s, self._jitter_s)))

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            reset(writer)
