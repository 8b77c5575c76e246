"""The LLM server's part of a request: features go there, tokens come back as they are made."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from mllm_sched.pipeline.edge_client import LEAST_TRY_S, EdgeClient
from mllm_sched.pipeline.jobs import Job
from mllm_sched.pipeline.node_errors import (
    AnswerChanged,
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
)
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Part, Request
from mllm_sched.pipeline.wire import Message, pack

PAUSE_S = 0.05  # before the server is asked again
Timed = tuple[pb.Times, float]


class Answering:
    """Has the LLM server answer, for ``at_once`` requests at a time.

    ``client`` is closed with this object. The features come from ``model``, an identity, and are of
    type ``wire`` on the way.
    """

    def __init__(self, client: EdgeClient, model: str, wire: str, at_once: int) -> None:
        self._client, self._model, self._wire, self.at_once = client, model, wire, at_once
        self._threads = ThreadPoolExecutor(at_once, "answer")
        self._inside: set[object] = set()
        self._left = asyncio.Event()

    @property
    def running(self) -> int:
        """Requests that have a place among the answers."""
        return len(self._inside)

    @property
    def has_room(self) -> bool:
        """Whether one more answer can begin."""
        return self.running < self.at_once

    async def room(self) -> None:
        """Wait until one more answer can begin."""
        while not self.has_room:
            self._left.clear()
            await self._left.wait()

    def enter(self, who: object) -> None:
        """Take a place, before anything is awaited: the next request must not find it free."""
        self._inside.add(who)

    def leave(self, who: object) -> None:
        """Give it back, if there is one."""
        self._inside.discard(who)
        self._left.set()

    async def relay(self, message: Message, parts: Sequence[Part], task: str, job: Job) -> Timed:
        """Add the tokens of an answer to a job; the server's times, and ours to the first token.

        ``parts`` are features in the place of the message's items; ``task`` names the request among
        those of all users. The server knows it by both: sent again with equal features, it finds
        the answer it has; with others, it makes another. Raises NodeError if the server does not
        answer by the job's deadline.
        """
        digest = hashlib.sha256(task.encode())
        for part in parts:
            digest.update(part.features.contiguous().numpy().tobytes())
        name = digest.hexdigest()[:48]
        request = Request(message.prompt, (), message.header.max_new_tokens, id=name)
        loop = asyncio.get_running_loop()

        def add(token: int) -> None:
            loop.call_soon_threadsafe(job.add, token)

        def follow() -> Timed:
            data = pack(request, self._model, parts, self._wire)
            return self._follow(data, name, job, add)

        return await loop.run_in_executor(self._threads, follow)

    def _follow(self, data: bytes, name: str, job: Job, add: Callable[[int], None]) -> Timed:
        """Add each token once; ask again if the server is busy and the job still has time."""
        begun_s, first_s, tokens = time.monotonic(), 0.0, list[int]()
        while True:
            try:
                left_s = max(0.001, job.ends_s - time.monotonic())
                for event, _ in self._client.events(data, name, left_s):
                    if event.WhichOneof("content") == "finished":
                        return event.finished.times, first_s
                    first_s = first_s or time.monotonic() - begun_s
                    if event.token.index >= len(tokens):
                        tokens.append(event.token.token)
                        add(event.token.token)
                    elif tokens[event.token.index] != event.token.token:
                        raise AnswerChanged("another answer", grpc.StatusCode.ABORTED)
            except (NodeBusy, NodeUnreachable, DeadlineMissed):
                if time.monotonic() + PAUSE_S + LEAST_TRY_S > job.ends_s:
                    raise
                time.sleep(PAUSE_S)

    def close(self) -> None:
        """Give the connection back; answers under way break off."""
        self._client.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
