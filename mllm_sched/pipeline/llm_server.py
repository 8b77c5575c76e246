"""A node of the pipeline: encoders, an LLM, or both, behind gRPC.

A node with both answers raw requests alone (All Edge, All Remote). One thread does all of a model's
work, in the order in which it came.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import torch
from safetensors.torch import save

from mllm_sched.pipeline.checkpoints import load_encoders, load_language
from mllm_sched.pipeline.jobs import Job, Jobs, RefusedError, Slot
from mllm_sched.pipeline.options import Limits, Security, check_host, check_options, security_of
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.requests import Part, Request
from mllm_sched.pipeline.service import abort, code_of, deadline_of, serve
from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf, markers_of
from mllm_sched.pipeline.wire import (
    Message,
    Rules,
    WireError,
    pack,
    pieces_of,
    read_rest,
    read_start,
    start_of,
    unpack,
)
from mllm_sched.process_setup import end_with

log = logging.getLogger(__name__)
Status = grpc.StatusCode


class Node(rpc.NodeServicer):
    """The service of a model by name, with at least one of its halves.

    A device that is slower by ``encoders_slowdown`` and ``llm_slowdown`` is imitated by pauses.
    """

    def __init__(
        self,
        name: str,
        encoders: EncoderHalf | None = None,
        language: LanguageHalf | None = None,
        *,
        limits: Limits = Limits(),
        encoders_slowdown: float = 1.0,
        llm_slowdown: float = 1.0,
        security: Security = Security(),
    ) -> None:
        half = language or encoders
        if half is None:
            raise ValueError("a node holds encoders, an LLM, or both")
        self.name, self.half = name, half
        self.encoders, self.language = encoders, language
        self.limits, self.security = limits, security
        self.encoders_slowdown, self.llm_slowdown = encoders_slowdown, llm_slowdown
        cuts = (["encoder", "projector"] if language else []) + (["input"] if encoders else [])
        self.rules = Rules(
            half, cuts, max_new_tokens=limits.new_tokens, max_logits_bytes=limits.bytes
        )
        self.jobs = Jobs(limits.requests)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.boot = uuid.uuid4().hex
        self.draining = False

    async def Describe(self, request: pb.Nothing, context: Any) -> pb.Card:
        """What the node holds and takes."""
        await self._admit(context)
        return pb.Card(
            model=self.half.identity,
            name=self.name,
            encoders=self.encoders.modalities if self.encoders else (),
            cuts=self.rules.cuts if self.language else (),
            max_bytes=self.limits.bytes,
            max_new_tokens=self.limits.new_tokens,
            limit=self.limits.requests,
            boot=self.boot,
            markers=markers_of(self.half),
        )

    async def Generate(
        self, pieces: AsyncIterator[pb.Piece], context: Any
    ) -> AsyncIterator[pb.Event]:
        """Tokens of the answer, as they are generated; once only, however often it is sent."""
        await self._admit(context)
        try:
            if self.language is None:
                raise RefusedError(Status.UNIMPLEMENTED, "this node holds no LLM")
            ends_s = deadline_of(context, self.limits.answer_s)
            start = await read_start(pieces, self.limits.bytes, self.limits.idle_s)
            if job := self.jobs.find(start.id, start.sha256):
                job.extend(ends_s)
            else:
                job = await self._begin(start, pieces, ends_s)
            async for event in job.follow(start.have, start.so_far):
                yield event
        except Exception as error:
            await abort(context, error)

    async def Encode(
        self, pieces: AsyncIterator[pb.Piece], context: Any
    ) -> AsyncIterator[pb.Piece]:
        """Features of raw items, as a message of the wire, and what they took."""
        await self._admit(context)
        try:
            if self.encoders is None:
                raise RefusedError(Status.UNIMPLEMENTED, "this node holds no encoders")
            ends_s = deadline_of(context, self.limits.answer_s)
            start = await read_start(pieces, self.limits.bytes, self.limits.idle_s)
            with self._take(start) as slot:
                times = pb.Times()
                message = await self._receive(start, pieces, slot, ends_s, times)
                if message.header.cut != "input":
                    raise WireError(f"cut at {message.header.cut}: expected raw items to encode")
                parts = await self._parts(message, start.cut or "projector", times)
                request = Request(message.prompt, id=start.id)
                data = pack(request, self.half.identity, parts, start.wire or "float32")
            for piece in pieces_of(data, start_of(data, start.id)):
                yield piece
            yield pb.Piece(times=times)
        except Exception as error:
            await abort(context, error)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what was begun."""
        self.draining = True
        await self.jobs.drain(grace_s)

    def close(self) -> None:
        """End the thread once the work at hand is done."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    async def _begin(self, start: pb.Start, pieces: AsyncIterator[pb.Piece], ends_s: float) -> Job:
        with self._take(start) as slot:
            times = pb.Times()
            message = await self._receive(start, pieces, slot, ends_s, times)
            assert self.language
            if not message.items:  # raw items have no layout yet
                layouts = [(part.modality, part.layout) for part in message.parts]
                self.language.ids(message.prompt, layouts)

            async def work(job: Job) -> None:
                await self._answer(job, message, times)

            return self.jobs.launch(start.id, start.sha256, ends_s, slot, work)

    async def _receive(
        self,
        start: pb.Start,
        pieces: AsyncIterator[pb.Piece],
        slot: Slot,
        ends_s: float,
        times: pb.Times,
    ) -> Message:
        async with slot.upload(ends_s):
            data, times.receive_s = await read_rest(pieces, start, self.limits.idle_s)
            message = await asyncio.to_thread(unpack, data, self.rules)
        if message.header.id != start.id:
            raise WireError(f"the message is of request {message.header.id}, not {start.id}")
        return message

    async def _answer(self, job: Job, message: Message, times: pb.Times) -> None:
        try:
            async with job.in_time():
                await self._generate(job, message, times)
        except TimeoutError:
            late = f"the deadline passed after {len(job.tokens)} tokens"
            job.end(failure=RefusedError(Status.DEADLINE_EXCEEDED, late))
        except ValueError as error:
            job.end(failure=RefusedError(code_of(error), str(error)))
        except Exception:
            log.exception("request %s failed", message.header.id)
            job.end(failure=RefusedError(Status.INTERNAL, "the model failed; see the node's log"))

    async def _generate(self, job: Job, message: Message, times: pb.Times) -> None:
        assert self.language
        parts, header = message.parts, message.header
        if header.cut == "input":
            parts = await self._parts(message, "projector", times)
        steps = self.language.generate(
            message.prompt, parts, header.max_new_tokens, of_prompt=header.logits
        )
        while True:
            step, busy_s = await self._compute(lambda: next(steps, None), self.llm_slowdown, times)
            times.llm_s += busy_s
            if step is None:
                break
            token, logits = step
            job.add(token, save({"logits": logits.contiguous()}) if header.logits else b"")
        job.end(pb.Finished(tokens=len(job.tokens), times=times))

    async def _parts(self, message: Message, cut: str, times: pb.Times) -> tuple[Part, ...]:
        """Features of raw items; all are checked before any is encoded."""
        assert self.encoders
        prepared = [
            await self._encoder_work(partial(self.encoders.prepare, item), times)
            for item in message.items
        ]
        kinds = [item.modality for item in message.items]
        layouts = [(kind, layout) for kind, (_, layout) in zip(kinds, prepared, strict=True)]
        new, logits = message.header.max_new_tokens, message.header.logits
        self.rules.check_length(message.prompt, layouts, new, logits=logits)
        parts = []
        for kind, (inputs, layout) in zip(kinds, prepared, strict=True):
            encode = partial(self.encoders.encode_prepared, kind, inputs, layout, cut)
            parts.append(await self._encoder_work(encode, times))
        return tuple(parts)

    async def _encoder_work(self, work: Callable[[], Any], times: pb.Times) -> Any:
        result, busy_s = await self._compute(work, self.encoders_slowdown, times)
        times.encode_s += busy_s
        return result

    async def _compute(
        self, work: Callable[[], Any], slowdown: float, times: pb.Times
    ) -> tuple[Any, float]:
        """The result, and the seconds it took. Requests take turns, token by token."""
        asked_s = time.perf_counter()

        def timed() -> tuple[Any, float, float]:
            begun_s = time.perf_counter()
            result = work()
            time.sleep((slowdown - 1.0) * (time.perf_counter() - begun_s))
            return result, begun_s, time.perf_counter()

        loop = asyncio.get_running_loop()
        result, begun_s, ended_s = await loop.run_in_executor(self.thread, timed)
        times.wait_s += begun_s - asked_s
        return result, ended_s - begun_s

    def _take(self, start: pb.Start) -> Slot:
        if self.draining:
            raise RefusedError(Status.UNAVAILABLE, "the node shuts down")
        return self.jobs.take(start.id, start.sha256)

    async def _admit(self, context: Any) -> None:
        if not self.security.allows(context.invocation_metadata()):
            await context.abort(Status.UNAUTHENTICATED, "no token, or a wrong one")


def run_node(
    options: argparse.Namespace, *, encoders: Sequence[str] | None = None, language: bool = True
) -> None:
    """Load the halves and serve them.

    ``encoders`` are the modalities to hold encoders for, all if empty; None for no encoders.
    """
    if options.parent:
        end_with(options.parent)
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
            encoders_slowdown=options.encoders_slowdown,
            llm_slowdown=options.llm_slowdown,
            security=security,
        )
        await serve(node, options.host, options.port)

    asyncio.run(main())
