"""A caller that does not take every answer for a good one."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import RequestRefused
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc

TOKENS = [pb.Event(token=pb.Token(index=index, token=5 + index)) for index in range(3)]


def finished(tokens):
    return pb.Event(finished=pb.Finished(tokens=tokens))


class Scripted(rpc.NodeServicer):
    """A node that answers every request with the same events."""

    def __init__(self, events):
        self.events = events

    def Generate(self, request, context):
        yield from self.events


def ask(events):
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_NodeServicer_to_server(Scripted(events), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with EdgeClient(f"127.0.0.1:{port}") as client:
            return client.ask(b"message", "name", deadline_s=5)
    finally:
        server.stop(None).wait()


def test_a_complete_answer_is_taken():
    assert ask([*TOKENS, finished(3)]).tokens == (5, 6, 7)


@pytest.mark.parametrize(
    "events",
    [
        [*TOKENS[:2], finished(3)],
        [TOKENS[0], TOKENS[2], finished(3)],
        [TOKENS[0], TOKENS[0], finished(1)],
        [*TOKENS, finished(2)],
    ],
    ids=["cut short", "one left out", "one twice", "one too many"],
)
def test_an_answer_with_a_token_too_few_or_too_many_is_refused(events):
    with pytest.raises(RequestRefused, match=r"tokens told of, \d came") as refused:
        ask(events)
    assert refused.value.code is grpc.StatusCode.DATA_LOSS
