"""A caller that does not take every answer for a good one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mllm_sched.pipeline import edge_client
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import (
    LONGEST_S,
    DeadlineMissed,
    NodeBusy,
    NodeError,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc

TOKENS = [pb.Event(token=pb.Token(index=index, token=5 + index)) for index in range(3)]


def finished(tokens):
    return pb.Event(finished=pb.Finished(tokens=tokens))


class Scripted(rpc.NodeServicer):
    """A node whose tries go by a script: each sends events, and ends with a status or hangs."""

    def __init__(self, *tries):
        self.tries = [*tries]

    def Generate(self, request, context):
        events, code, told = self.tries.pop(0) if len(self.tries) > 1 else self.tries[0]
        yield from events
        if code == "hangs":
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait(60)
        elif code:
            context.set_trailing_metadata(tuple(told.items()))
            context.abort(grpc.StatusCode[code], "not now")


HANGS = ((), "hangs", {})


def ask(*tries):
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_NodeServicer_to_server(Scripted(*tries), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with EdgeClient(f"127.0.0.1:{port}") as client:
            return client.ask(b"message", "name", deadline_s=1)
    finally:
        server.stop(None).wait()


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
        ask((events, None, {}))
    assert refused.value.code is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"])
def test_who_is_refused_learns_why_and_when_to_come_back(code):
    told = {"refused": "too-late", "retry-s": "0.25"}
    with pytest.raises(NodeError, match="not now") as refused:
        ask(((), code, told))
    assert (refused.value.reason, refused.value.retry_s) == ("too-late", 0.25)
    assert refused.value.code.name == code


@pytest.mark.parametrize(
    ("later", "errors"),
    [([], (NodeUnreachable, DeadlineMissed)), ([HANGS], DeadlineMissed)],  # the last may be late
    ids=["always", "at first"],
)
def test_who_asks_until_the_deadline_learns_why_it_was_in_vain(later, errors):
    told = {"refused": "draining", "retry-s": "0.25"}
    with pytest.raises(errors, match="not now") as unanswered:
        ask(((), "UNAVAILABLE", told), *later)
    assert (unanswered.value.reason, unanswered.value.retry_s) == ("draining", 0.25)
    assert unanswered.value.tries > 1


def test_no_try_is_made_that_is_too_short_to_be_answered(monkeypatch):
    monkeypatch.setattr(edge_client, "LEAST_TRY_S", 1.0)  # all the time there is
    with pytest.raises(NodeUnreachable, match="not now") as unanswered:
        ask(((), "UNAVAILABLE", {}))
    assert unanswered.value.tries == 1


def test_a_node_that_began_to_answer_and_was_late_is_not_said_to_have_been_away():
    with pytest.raises(DeadlineMissed) as late:
        ask(((), "UNAVAILABLE", {}), (TOKENS[:1], "hangs", {}))
    assert "not now" not in str(late.value) and late.value.tries == 2


@pytest.mark.parametrize(
    ("told", "retry_s"),
    [
        ({}, 0.0),
        ({"refused": "see http://elsewhere", "retry-s": "soon"}, 0.0),
        ({"refused": "x" * 1000, "retry-s": "nan"}, 0.0),
        ({"refused": "", "retry-s": "-1"}, 0.0),
        ({"refused": "Not A Word", "retry-s": "1e308"}, LONGEST_S),
    ],
)
def test_what_is_no_word_or_no_seconds_is_not_believed(told, retry_s):
    with pytest.raises(NodeBusy) as refused:
        ask(((), "RESOURCE_EXHAUSTED", told))
    assert (refused.value.reason, refused.value.retry_s) == ("", retry_s)
