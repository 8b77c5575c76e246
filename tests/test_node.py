"""Nodes behind real sockets, in this process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import grpc
import numpy as np
import pytest
import torch
from decoupled import (
    MODALITIES,
    OMNI,
    again,
    halves,
    message,
    monolithic,
    node_here,
    parts_of,
    request,
    serving,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_wire import MALFORMED

from mllm_sched.cli import main
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.llm_server import Node
from mllm_sched.pipeline.node_errors import (
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.options import Limits
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.wire import pack, pieces_of, start_of

Status = grpc.StatusCode


@pytest.fixture(scope="module")
def servers():
    """Addresses of LLM servers of every architecture, without encoders."""
    with ExitStack() as opened:
        yield {name: opened.enter_context(node_here(name, limits=Limits(4))) for name in MODALITIES}


@pytest.fixture(scope="module")
def sluggish():
    """An LLM server that takes seconds for an answer, two at a time."""
    with node_here("small-llava", limits=Limits(2), llm_slowdown=20) as address:
        yield address


@pytest.fixture(scope="module")
def whole():
    """A node of both halves."""
    with node_here(OMNI, encoders=True) as address:
        yield address


@pytest.fixture
def client(servers):
    with EdgeClient(servers[OMNI]) as opened:
        yield opened


@pytest.mark.parametrize("cut", ["encoder", "projector"])
@pytest.mark.parametrize("name", MODALITIES)
def test_across_processes_and_a_socket_nothing_changes_to_the_last_bit(servers, name, cut):
    asked = request(name)
    logits, tokens = monolithic(name, asked)
    with EdgeClient(servers[name]) as client:
        data = message(name, asked, parts_of(name, asked, cut), logits=True)[1]
        answer = client.ask(data, asked.id, 30)
    assert torch.equal(answer.logits[0], logits[0])
    assert answer.tokens == tokens


def test_a_node_says_what_it_holds(client):
    card = client.describe()
    assert card.model == halves(OMNI)[0].identity and card.name == OMNI
    assert list(card.encoders) == [] and list(card.cuts) == ["encoder", "projector"]
    assert card.markers["image"] == 260 and card.limit == 4


def test_every_malformed_message_is_refused_and_the_server_goes_on_unharmed(client):
    asked = request(OMNI)
    tokens = monolithic(OMNI, asked)[1]

    for number, (name, (data, _)) in enumerate(MALFORMED.items()):
        with pytest.raises(RequestRefused) as refusal:
            client.ask(data, f"bad {number}", 10)
        expected = {Status.FAILED_PRECONDITION}
        if name != "wrong model":
            expected.add(Status.INVALID_ARGUMENT)
        assert refusal.value.code in expected, name
        assert "Traceback" not in str(refusal.value) and len(str(refusal.value)) < 400
    fresh = again(asked)
    assert client.ask(message(OMNI, fresh)[1], fresh.id, 30).tokens == tokens


def broken_streams():
    """Pieces that do not keep to the protocol, and what the refusal must say."""
    asked, data = message(OMNI)
    first, *rest = pieces_of(data, start_of(data, asked.id))

    def with_start(**fields):
        given = {"id": asked.id, "bytes": len(data), "sha256": first.start.sha256, **fields}
        return [pb.Piece(start=pb.Start(**given)), *rest]

    return {
        "nothing": ([], "first piece must be a start"),
        "two starts": ([first, first], "expected a piece with data"),
        "half of it": ([first, pb.Piece(data=rest[0].data[:100])], "truncated: 100 of"),
        "more than announced": (with_start(bytes=100), "more than the 100 bytes"),
        "oversized": (with_start(bytes=1 << 40), "a message of 1099511627776 bytes"),
        "too short": (with_start(bytes=7), "a message of 7 bytes"),
        "wrong digest": (with_start(sha256=bytes(32)), "not those of the digest"),
        "no id": (with_start(id=""), "id of 0 characters"),
        "another id": (with_start(id="another"), "not another"),
    }


def test_a_broken_stream_is_refused_with_its_reason(servers):
    with grpc.insecure_channel(servers[OMNI]) as channel:
        for pieces, reason in broken_streams().values():
            with pytest.raises(grpc.RpcError) as refusal:
                list(rpc.NodeStub(channel).Generate(iter(pieces), timeout=60))
            assert refusal.value.code() is Status.INVALID_ARGUMENT
            assert reason in refusal.value.details()


def drip(data, asked, pause_s=0.1):
    """A message whose bytes come one at a time, with pauses."""
    yield pb.Piece(start=start_of(data, asked.id))
    for place in range(len(data)):
        time.sleep(pause_s)
        yield pb.Piece(data=data[place : place + 1])


def test_an_upload_that_drips_does_not_hold_its_place_for_ever():
    asked, data = message("small-llava")
    with node_here("small-llava", limits=Limits(1, idle_s=0.3)) as node:
        with grpc.insecure_channel(node) as channel, EdgeClient(node) as client:
            with pytest.raises(grpc.RpcError, match="too slowly") as ended:
                list(rpc.NodeStub(channel).Generate(drip(data, asked), timeout=60))
            assert ended.value.code() is Status.UNAVAILABLE
            assert client.ask(data, asked.id, 30).tries == 1


def test_a_request_sent_again_during_its_own_upload_is_answered():
    """Its first connection may have died in silence, and the only place must not be lost to it."""
    asked, data = message("small-llava")
    with node_here("small-llava", limits=Limits(1)) as node:
        with grpc.insecure_channel(node) as channel, EdgeClient(node) as client:
            hanging = rpc.NodeStub(channel).Generate(drip(data, asked), timeout=60)
            time.sleep(0.3)
            answer = client.ask(data, asked.id, 30)
            assert answer.tries == 1 and answer.tokens == monolithic("small-llava", asked)[1]
            with pytest.raises(grpc.RpcError) as ended:
                list(hanging)
            assert ended.value.code() is Status.UNAVAILABLE


def test_an_outage_in_mid_upload_longer_than_a_node_waits_is_survived():
    pixels = np.random.default_rng(0).integers(0, 256, (420, 630, 3), dtype=np.uint8)
    asked = replace(request(OMNI, ("image",)), items=(Item("image", pixels),))
    data = message(OMNI, asked)[1]
    with node_here(OMNI, limits=Limits(idle_s=0.5)) as node:
        with Link(node, up_mbit_s=2.0) as link, EdgeClient(link.address) as client:
            client.describe()
            assert len(data) > 150_000  # takes more than half a second
            threading.Timer(0.2, lambda: link.cut(1.0)).start()
            answer = client.ask(data, asked.id, 60)
    assert answer.tokens == monolithic(OMNI, asked)[1] and answer.tries > 1


def test_logits_of_a_long_prompt_reach_the_caller(servers):
    asked = request("small-llava", text=b"word " * 720)
    with EdgeClient(servers["small-llava"]) as client:
        data = message("small-llava", asked, logits=True)[1]
        logits = client.ask(data, asked.id, 60).logits[0]
    assert logits.numel() * 4 > 4 << 20  # gRPC's own limit for one message
    assert torch.equal(logits, monolithic("small-llava", asked)[0][0])


def test_pieces_that_no_client_sends_are_refused(whole):
    asked, data = message(OMNI)
    start = start_of(data, asked.id)
    with grpc.insecure_channel(whole) as channel:
        stub = rpc.NodeStub(channel)
        with pytest.raises(grpc.RpcError, match="expected raw items") as refusal:
            list(stub.Encode(pieces_of(data, start), timeout=60))
        assert refusal.value.code() is Status.INVALID_ARGUMENT
        large = [pb.Piece(start=start), pb.Piece(data=bytes(2 << 20))]
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Generate(iter(large), timeout=60))
        assert refusal.value.code() is Status.RESOURCE_EXHAUSTED


def test_a_request_sent_again_goes_on_where_it_was_and_is_not_generated_twice(servers, client):
    asked, data = message(OMNI)
    first = client.ask(data, asked.id, 30)
    second = client.ask(data, asked.id, 30)
    assert second.tokens == first.tokens
    assert second.times.llm_s == first.times.llm_s  # of the one time it was generated
    with grpc.insecure_channel(servers[OMNI]) as channel:
        rest = pieces_of(data, start_of(data, asked.id, have=5))
        events = list(rpc.NodeStub(channel).Generate(rest, timeout=60))
    assert tuple(event.token.token for event in events[:-1]) == first.tokens[5:]


def test_more_requests_than_the_limit_are_refused_at_once_and_the_others_answered(sluggish):
    asked = request("small-llava")
    tokens = monolithic("small-llava", asked)[1]

    def one(_):
        mine = again(asked)
        with EdgeClient(sluggish) as client:
            try:
                return client.ask(message("small-llava", mine)[1], mine.id, 30).tokens
            except NodeBusy as error:
                return error.code

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    assert results.count(tokens) == results.count(Status.RESOURCE_EXHAUSTED) == 2
    assert one(0) == tokens  # and then there is room again


def test_clients_at_once_get_the_answers_of_a_lone_one(servers):
    asked = [request(OMNI, text=f"question {number}".encode(), seed=number) for number in range(4)]
    alone = [monolithic(OMNI, one)[1] for one in asked]
    assert len(set(alone)) == 4

    def one(mine):
        with EdgeClient(servers[OMNI]) as client:
            return client.ask(message(OMNI, mine)[1], mine.id, 60).tokens

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, asked)) == alone


def test_a_late_answer_is_a_missed_deadline_and_a_later_request_is_served(sluggish):
    asked = request("small-llava")
    with EdgeClient(sluggish) as client:
        begun_s = time.monotonic()
        with pytest.raises(DeadlineMissed, match=r"no complete answer in 0\.5 s"):
            client.ask(message("small-llava", asked)[1], asked.id, 0.5)
        assert time.monotonic() - begun_s < 2  # a whole answer takes longer
        short = replace(again(asked), max_new_tokens=1)
        assert len(client.ask(message("small-llava", short)[1], short.id, 30).tokens) == 1


def test_a_node_that_is_not_there_is_named_with_the_tries():
    asked, data = message("small-llava")
    with EdgeClient("127.0.0.1:1") as client:
        with pytest.raises(NodeUnreachable, match=r"127\.0\.0\.1:1: no answer in 0\.5 s") as error:
            client.ask(data, asked.id, 0.5)
    assert error.value.tries > 1


def test_a_node_of_encoders_gives_the_features_that_would_be_made_here():
    asked, model = request(OMNI), halves(OMNI)[0].identity
    node = Node(OMNI, halves(OMNI)[0].only(["image", "audio"]))
    with serving(node) as address, EdgeClient(address) as client:
        assert list(client.describe().encoders) == ["image", "audio"]
        only = replace(asked, items=asked.items[:2])
        for cut in ("encoder", "projector"):
            parts, times = client.encode(only, model, 30, cut)
            for ours, theirs in zip(parts_of(OMNI, only, cut), parts, strict=True):
                assert torch.equal(ours.features, theirs.features)
                assert ours.layout == theirs.layout and ours.cut == theirs.cut
            assert times.encode_s > 0
        short = replace(asked, items=(Item("audio", np.zeros(161, np.int16)),))
        with pytest.raises(RequestRefused, match="audio of 161 cannot be prepared") as refusal:
            client.encode(short, model, 30)
        assert refusal.value.code is Status.INVALID_ARGUMENT
        with pytest.raises(RequestRefused, match="video: this model takes image, audio"):
            client.encode(asked, model, 30)
        with pytest.raises(RequestRefused, match="holds no LLM") as refusal:
            client.ask(message(OMNI)[1], "x", 10)
        assert refusal.value.code is Status.UNIMPLEMENTED


def test_a_node_with_both_halves_answers_raw_requests_alike(whole):
    asked = request(OMNI)
    with EdgeClient(whole) as client:
        answer = client.ask(pack(asked, halves(OMNI)[0].identity), asked.id, 30)
        assert answer.tokens == monolithic(OMNI, asked)[1]
        assert answer.times.encode_s > 0 and answer.times.llm_s > 0


def test_the_health_check():
    with node_here("small-llava") as node, grpc.insecure_channel(node) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "mllm_sched.pipeline.Node"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refusal:  # an endless stream would hold a place
            list(health.Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert refusal.value.code() is Status.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "gpt"], "model 'gpt'"),
        (["--host", "0.0.0.0"], "others can reach it"),
        (["--certificate", "x.pem"], "give certificate, key and authority"),
        (["--llm-slowdown", "0.5"], "--llm-slowdown 0.5: expected 1 or more"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--host", "0.0.0.0", "--token-file", __file__], "a token neither"),
    ],
)
def test_a_wrong_call_of_a_node_says_why(options, reason, capsys):
    assert main(["serve-llm", *options]) == 2
    assert reason in capsys.readouterr().err


def test_a_port_in_use_is_named(servers, capsys):
    port = servers[OMNI].rpartition(":")[2]
    assert main(["serve-llm", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
