"""An agent in this very process: a real service and queue, a scripted device, a scripted LLM."""

import asyncio
import sqlite3
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace

import grpc
import numpy as np
import torch
from test_closed_loop import LIMIT_S, SPACE, TRUSTED

from mllm_sched.devices import Encoded
from mllm_sched.devices.model_encoders import Prepared
from mllm_sched.edge.agent import Agent
from mllm_sched.edge.answering import Answering
from mllm_sched.edge.closed_loop import ClosedLoop
from mllm_sched.edge.encoder_stage import EncoderStage
from mllm_sched.edge.fair_queue import FairQueue
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.edge.monitor import Metrics
from mllm_sched.edge.proto.agent_pb2_grpc import add_AgentServicer_to_server
from mllm_sched.edge.service import BEHALF
from mllm_sched.edge.siblings import AgentTalk
from mllm_sched.edge.users import Users
from mllm_sched.pipeline.checkpoints import bare_encoders
from mllm_sched.pipeline.node_errors import DeadlineMissed
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.requests import Item, Part, Request, prompt_ids
from mllm_sched.pipeline.service import listening
from mllm_sched.pipeline.split import markers_of
from mllm_sched.pipeline.wire import pack, pieces_of, start_of

MODEL = "small-qwen2.5-omni"
HALF = bare_encoders(MODEL, ("image", "audio"), 0)
PIXELS = np.zeros((56, 56, 3), np.uint8)


class Device:
    """Takes ``busy_s`` for a call, and tells of 0.1 s."""

    space, evidence, energy_evidence, batches = SPACE, "measured", "estimated", True

    def __init__(self, busy_s=0.0, half=HALF):
        self.busy_s, self.calls, self.encoders = busy_s, [], self
        self.half, self.modalities = half, {f"scripted:{one}": one for one in half.modalities}

    def prepare(self, item):
        return Prepared(item.modality, *self.half.prepare(item))

    def run(self, arm, task, items):
        self.calls.append(len(items))
        time.sleep(self.busy_s)
        parts = [Part(one.modality, "projector", torch.zeros(4, 3), one.layout) for one in items]
        return Encoded(arm, task, 0.1, 1.0 * len(items), "measured", "estimated", parts=parts)

    def close(self):
        pass


def failed(encoded, why):
    """The same run, as one that came to nothing."""
    return replace(encoded, failed=why, cause="raised", parts=())


class Llm:
    """In the place of a client of the server: answers ``tokens`` after ``takes_s``, or raises.

    Before each token it takes ``step_s``. While ``going`` is cleared, it answers nothing.
    """

    def __init__(self, takes_s=0.0, tokens=(7, 8), step_s=0.0):
        self.takes_s, self.tokens, self.step_s = takes_s, tokens, step_s
        self.fails, self.open, self.most = [], 0, 0
        self.asked = []
        self.going = threading.Event()
        self.going.set()
        self._lock = threading.Lock()

    def events(self, data, name, left_s):
        with self._lock:
            self.asked.append(name)
            self.open += 1
            self.most = max(self.most, self.open)
        try:
            self.going.wait(left_s)
            time.sleep(min(self.takes_s, left_s))
            if self.takes_s > left_s:
                raise DeadlineMissed("too late", grpc.StatusCode.DEADLINE_EXCEEDED)
            if self.fails:
                raise self.fails.pop(0)
            for index, token in enumerate(self.tokens):
                time.sleep(self.step_s)
                yield pb.Event(token=pb.Token(index=index, token=token)), 1
            yield pb.Event(finished=pb.Finished(tokens=len(self.tokens))), 1
        finally:
            with self._lock:
                self.open -= 1

    def close(self):
        pass


class Here:
    """The agent, and its users."""

    def __init__(self, agent, port, journal):
        self.agent, self.journal = agent, journal
        self.device, self.llm, self.port = agent.device, agent.answering._client, port
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._threads = ThreadPoolExecutor(64)

    async def ask(self, user="ana", items=1, deadline_s=10.0, name=None, data=None):
        """What became of it: its tokens, or status and words."""
        data = data or message(items, name := name or uuid.uuid4().hex)
        call = self._call, data, name, user, deadline_s
        return await asyncio.get_running_loop().run_in_executor(self._threads, *call)

    def _call(self, data, name, user, deadline_s):
        # Not by gRPC's asyncio: refused in mid-upload, that says at times "Internal error from
        # Core" in the place of the status.
        metadata = (*Security("any").metadata, (BEHALF, user))
        pieces = pieces_of(data, start_of(data, name))
        stub = rpc.NodeStub(self._channel)
        try:
            events = list(stub.Generate(pieces, timeout=deadline_s, metadata=metadata))
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return [event.token.token for event in events[:-1]]

    def counted(self, reason):
        """Refusals for that reason, as Prometheus is told."""
        registry = self.agent.metrics.registry
        return registry.get_sample_value("mllm_sched_shed_total", {"reason": reason})

    def decided(self):
        """How often an arm was chosen for each item that was begun here."""
        events = [event for event in self.journal.events() if event.kind == "decided"]
        return Counter(task for event in events for task in event.body["tasks"])

    @contextmanager
    def locked(self):
        """Another connection holds the journal."""
        with closing(sqlite3.connect(self.journal.path, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            try:
                yield other
            finally:
                other.rollback()


def message(items, name, half=HALF, **options):
    """A request of so many images, or of these items."""
    if isinstance(items, int):
        items = tuple(Item("image", PIXELS.copy()) for _ in range(items))
    prompt = prompt_ids(markers_of(half), [item.modality for item in items], b"What?")
    return pack(Request(prompt, items, 2, id=name), half.identity, **options)


async def until(condition, timeout_s=60.0):
    """Wait for something to become so."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not become so"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def here(folder, name="edge-1", *, port=0, expects=None, users=None, **options):
    """An agent that serves as long as the block lasts; the journal is in ``folder``.

    It ``expects`` an image to take these seconds and joules. Options are ``device``, ``llm``,
    ``sizes`` of batches, answers ``at_once``, and ``limits``.
    """
    device, llm = options.get("device") or Device(), options.get("llm") or Llm()
    metrics = Metrics(SPACE)
    with Journal(folder / f"{name}.journal", busy_s=0.2) as journal:
        spec = SchedulerSpec("ucb", SPACE, {"latency_s": LIMIT_S}, [TRUSTED])
        loop = ClosedLoop(name, device, Learner(journal, spec), LIMIT_S, metrics)
        answering = Answering(llm, device.half.identity, "float32", options.get("at_once", 4))
        stage = EncoderStage(loop, FairQueue(), options.get("sizes", (1,)), answering, metrics)
        users, limits = users or Users.anyone(), options.get("limits", Limits(64))
        agent = Agent(name, stage, answering, journal, users, limits, Security(), metrics)
        if expects:
            stage.admission.expect("image", *expects)

        def add(server):
            add_AgentServicer_to_server(AgentTalk(agent), server)

        works = stage.dispatch(), stage.shed(), agent.journal.watch()
        tasks = [asyncio.create_task(each) for each in works]
        try:
            async with listening(agent, "127.0.0.1", port, add=add) as bound:
                yield (system := Here(agent, bound, journal))
                system._channel.close()
        finally:
            for task in tasks:
                task.cancel()
