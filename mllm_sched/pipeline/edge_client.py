"""The client of a node: sends requests, retries, and resumes answers that broke off."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import torch
from safetensors.torch import load

from mllm_sched.pipeline.node_errors import (
    AnswerChanged,
    NodeError,
    NodeUnreachable,
    RequestRefused,
    error_of,
)
from mllm_sched.pipeline.options import MESSAGE_BYTES, Security
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.requests import Part, Request
from mllm_sched.pipeline.wire import WireError, digest_of, pack, pieces_of, read_parts, start_of

PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
LEAST_TRY_S = 0.05  # a shorter one would miss the deadline in any case
_GONE = grpc.StatusCode.UNAVAILABLE
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),  # notices a peer that vanished in silence
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # clients do not share a connection
    ("grpc.enable_retries", 0),  # done here, where the request's id is known
    ("grpc.max_receive_message_length", MESSAGE_BYTES + (1 << 20)),  # logits of a prompt
]


@dataclass(frozen=True)
class Answer:
    """Tokens, and if wanted the logits that they were chosen from.

    ``total_s`` is from asking to the last token, ``times`` are the node's. ``runs`` are an edge
    agent's, of its encoders, one for each item.
    """

    tokens: tuple[int, ...]
    total_s: float
    times: pb.Times
    tries: int = 1
    logits: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    runs: tuple[pb.Run, ...] = ()


class EdgeClient:
    """A connection to the node at ``HOST:PORT``; may be used from several threads.

    Examples
    --------
    >>> with EdgeClient("127.0.0.1:50051") as client:  # doctest: +SKIP
    ...     card = client.describe()
    ...     answer = client.ask(data, request.id, deadline_s=10)
    """

    def __init__(self, address: str, security: Security = Security()) -> None:
        self.address = address
        self._security = security
        credentials = security.channel_credentials()
        self._channel = (
            grpc.secure_channel(address, credentials, _OPTIONS)
            if credentials
            else grpc.insecure_channel(address, _OPTIONS)
        )
        self._stub = rpc.NodeStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Closing twice does nothing."""
        self._channel.close()

    def describe(self, deadline_s: float = 10.0) -> pb.Card:
        """What the node holds and takes. Raises as ``ask``."""

        def attempt(left_s: float) -> list[pb.Card]:
            return [self._call(self._stub.Describe, left_s, pb.Nothing())]

        ((card, _),) = self._tries(attempt, deadline_s)
        return card

    def ask(self, data: bytes, name: str, deadline_s: float) -> Answer:
        """Send a message of ``wire.pack`` and wait for its answer.

        ``name`` is the request's id: under the same id, an answer is never generated twice. An
        unreachable node is tried again until the deadline.

        Raises RequestRefused if the node will not serve it, NodeBusy if it cannot now,
        NodeUnreachable or DeadlineMissed if the deadline passed.
        """
        begun_s, left_s = time.perf_counter(), deadline_s
        while True:
            try:
                *events, (last, tries) = self.events(data, name, left_s)
            except AnswerChanged:
                left_s = deadline_s - (time.perf_counter() - begun_s)
                if left_s <= 0:
                    raise
                continue
            total_s, told = time.perf_counter() - begun_s, last.finished
            tokens = tuple(event.token.token for event, _ in events)
            sent = (event.token.logits for event, _ in events if event.token.logits)
            logits = tuple(load(each)["logits"] for each in sent)
            return Answer(tokens, total_s, told.times, tries, logits, tuple(told.runs))

    def events(self, data: bytes, name: str, deadline_s: float) -> Iterator[tuple[pb.Event, int]]:
        """Tokens as they come, then the end; each with the number of the try.

        Raises as ``ask``, and AnswerChanged if the node lost the answer and generated another one,
        where ``ask`` begins again by itself.
        """
        tokens: list[int] = []

        def attempt(left_s: float) -> Iterator[pb.Event]:
            have = len(tokens)
            start = start_of(data, name, have=have, so_far=digest_of(tokens) if have else b"")
            for event in self._call(self._stub.Generate, left_s, pieces_of(data, start)):
                if event.WhichOneof("content") == "finished":
                    _check_count(event.finished.tokens, len(tokens))
                    yield event
                    return
                _check_count(event.token.index, len(tokens))
                tokens.append(event.token.token)
                yield event
            raise _Broken

        yield from self._tries(attempt, deadline_s)

    def encode(
        self, request: Request, model: str, deadline_s: float, cut: str = "projector"
    ) -> tuple[tuple[Part, ...], pb.Times]:
        """Features of a request's items, made by a node that holds encoders. Raises as ``ask``."""
        data = pack(request, model)

        def attempt(left_s: float) -> Iterator[tuple[bytes, pb.Times]]:
            start = start_of(data, request.id, cut=cut, wire="float32")
            yield _reply(self._call(self._stub.Encode, left_s, pieces_of(data, start)))

        (((received, times), _),) = self._tries(attempt, deadline_s)
        try:
            parts = read_parts(received)
        except WireError as error:
            message = f"{self.address}: invalid features: {error}"
            raise RequestRefused(message, grpc.StatusCode.DATA_LOSS) from error
        return parts, times

    def _call(self, method: Any, left_s: float, message: Any) -> Any:
        return method(message, timeout=left_s, metadata=self._security.metadata)

    def _tries(
        self, attempt: Callable[[float], Any], deadline_s: float
    ) -> Iterator[tuple[Any, int]]:
        """What the attempts yield, each with its number, until one is complete."""
        if not deadline_s > 0:
            raise ValueError(f"deadline_s={deadline_s}: expected seconds above 0")
        ends_s, tries = time.monotonic() + deadline_s, 0
        before: NodeError | None = None  # how the last try ended, until something comes of the next
        while True:
            tries += 1
            try:
                for result in attempt(max(0.001, ends_s - time.monotonic())):
                    before = None
                    yield result, tries
                return
            except _Broken:
                why = "the answer broke off"
                before = NodeError(f"{self.address}: {why}", _GONE, tries)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)  # noqa: PT017 (for the type checker)
                before = error_of(error, self.address, deadline_s, tries, before)
                if before.code is not _GONE:
                    raise before from None
                why = error.details() or "no reason given"
            pause_s = min(LONGEST_PAUSE_S, PAUSE_S * 2**tries) * random.uniform(0.5, 1.0)
            if time.monotonic() + pause_s + LEAST_TRY_S >= ends_s:
                message = f"{self.address}: no answer in {deadline_s:g} s, {tries} tries: {why}"
                raise NodeUnreachable(
                    message, _GONE, tries, reason=before.reason, retry_s=before.retry_s
                )
            time.sleep(pause_s)


class _Broken(Exception):
    """A stream that ended without its last event."""


def _reply(pieces: Iterator[pb.Piece]) -> tuple[bytes, pb.Times]:
    start, received = pb.Start(), bytearray()
    for piece in pieces:
        kind = piece.WhichOneof("content")
        if kind == "start":
            start = piece.start
        elif kind == "data":
            received += piece.data
        elif kind == "times" and hashlib.sha256(received).digest() == start.sha256:
            return bytes(received), piece.times
    raise _Broken


def _check_count(told: int, have: int) -> None:
    if told != have:
        raise RequestRefused(f"{told} tokens told of, {have} came", grpc.StatusCode.DATA_LOSS)
