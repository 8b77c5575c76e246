"""A message in pieces: sent, and put together again under limits of size and time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.wire_header import MAX_ID, WireError, is_id

PIECE_BYTES = 64 << 10
SLOWEST_BYTES_S = 8 << 10  # an upload that is slower on average holds a place for too long


def start_of(data: bytes, name: str, **fields: Any) -> pb.Start:
    """The piece that goes before the message ``data``; ``fields`` as in the protocol."""
    return pb.Start(id=name, bytes=len(data), sha256=hashlib.sha256(data).digest(), **fields)


def pieces_of(data: bytes, start: pb.Start) -> Iterator[pb.Piece]:
    """Start and message, piece by piece."""
    yield pb.Piece(start=start)
    for offset in range(0, len(data), PIECE_BYTES):
        yield pb.Piece(data=data[offset : offset + PIECE_BYTES])


def digest_of(tokens: Iterable[int]) -> bytes:
    """SHA-256 of tokens, four bytes each, little-endian.

    >>> digest_of([1, 2]) == digest_of(iter((1, 2))) != digest_of([2, 1])
    True
    """
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).digest()


async def read_start(pieces: AsyncIterator[pb.Piece], max_bytes: int, timeout_s: float) -> pb.Start:
    """The first piece, checked.

    Raises
    ------
    WireError
        If it is none, or announces more than is allowed.
    TimeoutError
        If it does not come in time.
    """
    piece = await _next(pieces, timeout_s)
    if piece is None or piece.WhichOneof("content") != "start":
        raise WireError("the first piece must be a start")
    start: pb.Start = piece.start
    if not is_id(start.id):
        length = len(start.id)
        raise WireError(f"id of {length} characters: expected 1 to {MAX_ID}, printable ASCII")
    if len(start.sha256) != 32:
        raise WireError("sha256: expected 32 bytes")
    if not 8 <= start.bytes <= max_bytes:
        raise WireError(f"a message of {start.bytes} bytes: expected 8 to {max_bytes}")
    return start


async def read_rest(
    pieces: AsyncIterator[pb.Piece], start: pb.Start, timeout_s: float
) -> tuple[bytes, float]:
    """The whole message, and the seconds it took to arrive.

    A sender may pause for ``timeout_s`` in all, beside what its bytes take at the slowest rate.

    Raises
    ------
    WireError
        If it is longer or shorter than announced, or not what the digest says.
    TimeoutError
        If it comes too slowly.
    """
    begun_s, data = time.perf_counter(), bytearray()
    while len(data) < start.bytes:
        allowed_s = timeout_s + len(data) / SLOWEST_BYTES_S
        piece = await _next(pieces, allowed_s - (time.perf_counter() - begun_s))
        if piece is None:
            raise WireError(f"truncated: {len(data)} of {start.bytes} bytes came")
        if piece.WhichOneof("content") != "data" or not piece.data:
            raise WireError("expected a piece with data")
        data += piece.data
        if len(data) > start.bytes:
            raise WireError(f"more than the {start.bytes} bytes that were announced")
    message = bytes(data)
    if hashlib.sha256(message).digest() != start.sha256:
        raise WireError("the bytes are not those of the digest")
    return message, time.perf_counter() - begun_s


async def _next(pieces: AsyncIterator[pb.Piece], timeout_s: float) -> pb.Piece | None:
    async with asyncio.timeout(timeout_s):
        return await anext(pieces, None)
