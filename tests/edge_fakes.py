"""Small edge agents for tests of what stands before them: real sockets, predictable answers."""

import asyncio
import hashlib
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mllm_sched.edge.proto import agent_pb2 as pb
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import accepting
from mllm_sched.pipeline.jobs import Jobs
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2, node_pb2_grpc
from mllm_sched.pipeline.service import abort, deadline_of
from mllm_sched.pipeline.wire import read_rest, read_start

MODEL = "f" * 64
FRONT_TOKEN = "the front's own"


@dataclass(frozen=True)
class Ways:
    """How a fake agent behaves.

    Attributes
    ----------
    tokens, step_s
        Length of an answer, and seconds for each token.
    offset
        Added to every token: an agent that answers otherwise than the rest.
    """

    name: str = "a"
    tokens: int = 5
    step_s: float = 0.0
    offset: int = 0
    model: str = MODEL
    latency_s: float = 0.1
    energy_j: float = 1.0
    answer_s: float = 0.1


def answer_of(data, tokens=5, offset=0):
    """The tokens that every fake agent answers these bytes with."""
    first = int.from_bytes(hashlib.sha256(data).digest()[:2], "little") + offset
    return tuple(first + index for index in range(tokens))


class FakeAgent(node_pb2_grpc.NodeServicer, rpc.AgentServicer):
    """A node and an agent in one."""

    def __init__(self, ways=Ways()):
        self.ways, self.boot = ways, uuid.uuid4().hex
        self.limits, self.security, self.jobs = Limits(64), Security(), Jobs(64)
        self.draining, self.why_not = False, ""
        self.refusal = None  # what it turns every new task away with
        self.going = asyncio.Event()  # cleared: it begins tasks, and answers none
        self.going.set()
        self.asked = []  # user and id of every call
        self.begun = []

    async def Describe(self, request, context):
        await self._check(context)
        return node_pb2.Card(
            model=self.ways.model,
            name=self.ways.name,
            encoders=["image", "audio"],
            cuts=["input"],
            max_bytes=self.limits.bytes,
            max_new_tokens=64,
            boot=self.boot,
        )

    async def Status(self, request, context):
        await self._check(context)
        ways = self.ways
        told = {"latency_s": ways.latency_s, "energy_j": ways.energy_j}
        why_not = "the agent shuts down" if self.draining else self.why_not
        return pb.AgentStatus(
            name=ways.name,
            boot=self.boot,
            model=ways.model,
            taking=not why_not,
            why_not=why_not,
            draining=self.draining,
            running=self.jobs.taken,
            backlog_s=self.jobs.taken * ways.latency_s,
            answer_s=ways.answer_s,
            predictions=[pb.Prediction(modality="image", **told)],
        )

    async def Holds(self, request, context):
        await self._check(context)
        return pb.HeldReply(held=self.jobs.knows(f"{request.user}/{request.id}"))

    async def Generate(self, pieces, context):
        await self._check(context)
        try:
            user = dict(context.invocation_metadata())["on-behalf-of"]
            ends_s = deadline_of(context, 60)
            start = await read_start(pieces, self.limits.bytes, 5)
            key = f"{user}/{start.id}"
            self.asked.append(key)
            job = self.jobs.find(key, start.sha256)
            if job is None:
                if self.draining:
                    raise Refusal("draining", "the node shuts down")
                if self.refusal:
                    raise self.refusal
                with self.jobs.take(key, start.sha256) as slot:
                    data, _ = await read_rest(accepting(pieces, context), start, 5)
                    self.begun.append(key)
                    job = self.jobs.launch(key, start.sha256, ends_s, slot, self._work(data))
            async for event in job.follow(start.have, start.so_far):
                yield event
        except Exception as error:
            if isinstance(error, Refusal):
                context.set_trailing_metadata(error.metadata)
            await abort(context, error)

    def _work(self, data):
        async def work(job):
            await self.going.wait()
            for token in answer_of(data, self.ways.tokens, self.ways.offset):
                await asyncio.sleep(self.ways.step_s)
                job.add(token)
            run = node_pb2.Run(agent=self.ways.name, evidence="measured")
            job.end(node_pb2.Finished(tokens=len(job.tokens), runs=[run]))

        return work

    async def _check(self, context):
        if not Security(FRONT_TOKEN).allows(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token, or a wrong one")

    async def drain(self, grace_s):
        self.draining = True
        await self.jobs.drain(grace_s)

    def close(self):
        pass


@asynccontextmanager
async def listening(servicer, *adds, port=0):
    """The servicer on a loopback port, in this very loop; its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for add in (node_pb2_grpc.add_NodeServicer_to_server, *adds):
        add(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


def fake(servicer, port=0):
    """A fake agent on a port, in this very loop."""
    return listening(servicer, rpc.add_AgentServicer_to_server, port=port)


async def until(condition, timeout_s=60.0):
    """Wait for something to become so."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not become so"
        await asyncio.sleep(0.01)
