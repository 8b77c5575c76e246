"""Nodes behind real sockets, in this process."""

import asyncio
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
    NEW_TOKENS,
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

from mllm_sched.pipeline import llm_server
from mllm_sched.pipeline.checkpoints import load_encoders
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.llm_server import Node
from mllm_sched.pipeline.node_errors import (
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.options import Limits, Slowdown
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.proto import node_pb2_grpc as rpc
from mllm_sched.pipeline.requests import WIRE_TYPES, Item
from mllm_sched.pipeline.wire import pack, pieces_of, read_start, start_of

Status = grpc.StatusCode


@pytest.fixture(scope="module")
def servers():
    """Addresses of LLM servers of every architecture, without encoders."""
    with ExitStack() as opened:
        yield {name: opened.enter_context(node_here(name, limits=Limits(4))) for name in MODALITIES}


@pytest.fixture(scope="module")
def sluggish():
    """An LLM server that takes seconds for an answer, two at a time."""
    with node_here("small-llava", limits=Limits(2), slowdown=Slowdown(llm=20)) as address:
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


def test_narrower_types_change_logits_a_little_and_more_the_narrower(client):
    logits, _ = monolithic(OMNI, request(OMNI))
    errors = {}
    for wire in WIRE_TYPES:
        asked, data = message(OMNI, wire=wire, logits=True)
        answer = client.ask(data, asked.id, 30)
        errors[wire] = float((answer.logits[0] - logits[0]).abs().max())
    assert errors["float32"] == 0 < errors["float16"] < errors["bfloat16"] < errors["int8"]
    assert errors["int8"] < 0.05 * float(logits.abs().max())


def test_tokens_come_one_by_one(client):
    asked, data = message(OMNI)
    events = [event for event, _ in client.events(data, asked.id, 30)]
    assert [event.WhichOneof("content") for event in events] == NEW_TOKENS * ["token"] + [
        "finished"
    ]
    assert [event.token.index for event in events[:-1]] == list(range(NEW_TOKENS))


def test_a_node_says_what_it_holds(client):
    card = client.describe()
    assert card.model == halves(OMNI)[0].identity and card.name == OMNI
    assert list(card.encoders) == [] and list(card.cuts) == ["encoder", "projector"]
    assert card.markers["image"] == 260 and card.limit == 4


def test_every_malformed_message_is_refused_and_the_server_goes_on_unharmed(client):
    asked = request(OMNI)
    tokens = monolithic(OMNI, asked)[1]

    assert len(MALFORMED) >= 40
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
    start = start_of(data, asked.id)
    first, *rest = pieces_of(data, start)

    def with_start(**fields):
        changed = pb.Start()
        changed.CopyFrom(start)
        for name, value in fields.items():
            setattr(changed, name, value)
        return [pb.Piece(start=changed), *rest]

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


@pytest.mark.parametrize("name", broken_streams())
def test_a_broken_stream_is_refused_with_its_reason(servers, name):
    pieces, reason = broken_streams()[name]
    with grpc.insecure_channel(servers[OMNI]) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            list(rpc.NodeStub(channel).Generate(iter(pieces), timeout=60))
    assert refusal.value.code() is Status.INVALID_ARGUMENT
    assert reason in refusal.value.details()


def drip(data, asked, pause_s):
    """A message whose bytes come one at a time, with pauses."""
    yield pb.Piece(start=start_of(data, asked.id))
    for place in range(len(data)):
        time.sleep(pause_s)
        yield pb.Piece(data=data[place : place + 1])


def test_an_upload_that_drips_does_not_hold_its_place_for_ever():
    asked, data = message("small-llava")
    node = Node("small-llava", language=halves("small-llava")[1], limits=Limits(1, idle_s=0.3))

    async def main():
        async def pieces():
            for piece in drip(data, asked, 0):
                await asyncio.sleep(0.05)  # never long, and far below the slowest rate
                yield piece

        start = await read_start(upload := pieces(), 1 << 20, 1)
        with pytest.raises(TimeoutError):
            await node._begin(start, upload, asyncio.get_running_loop().time() + 60)
        assert node.jobs.taken == 0

    asyncio.run(main())


def test_a_request_sent_again_during_its_own_upload_is_answered():
    """Its first connection may have died in silence, and the only place must not be lost to it."""
    asked, data = message("small-llava")
    with node_here("small-llava", limits=Limits(1)) as node:
        with grpc.insecure_channel(node) as channel, EdgeClient(node) as client:
            hanging = rpc.NodeStub(channel).Generate(drip(data, asked, 0.1), timeout=60)
            time.sleep(0.3)
            answer = client.ask(data, asked.id, 30)
            assert answer.tries == 1 and answer.tokens == monolithic("small-llava", asked)[1]
            with pytest.raises(grpc.RpcError) as ended:
                list(hanging)
            assert ended.value.code() is Status.UNAVAILABLE


def test_a_second_caller_with_more_time_gets_an_answer_that_the_first_gave_up(sluggish):
    asked, data = message("small-llava")
    with EdgeClient(sluggish) as hasty, EdgeClient(sluggish) as patient:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(hasty.ask, data, asked.id, 0.5)
            time.sleep(0.2)
            second = pool.submit(patient.ask, data, asked.id, 60)
            with pytest.raises(DeadlineMissed):
                first.result()
            assert second.result().tokens == monolithic("small-llava", asked)[1]


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


def test_a_message_that_was_cut_already_is_not_encoded_again(whole):
    asked, data = message(OMNI)
    with grpc.insecure_channel(whole) as channel:
        pieces = pieces_of(data, start_of(data, asked.id))
        with pytest.raises(grpc.RpcError, match="expected raw items") as refusal:
            list(rpc.NodeStub(channel).Encode(pieces, timeout=60))
    assert refusal.value.code() is Status.INVALID_ARGUMENT


def test_an_oversized_piece_is_refused(servers):
    asked, data = message(OMNI)
    pieces = [pb.Piece(start=start_of(data, asked.id)), pb.Piece(data=bytes(2 << 20))]
    with grpc.insecure_channel(servers[OMNI]) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            list(rpc.NodeStub(channel).Generate(iter(pieces), timeout=60))
    assert refusal.value.code() is Status.RESOURCE_EXHAUSTED


def test_a_request_sent_again_gets_its_answer_and_is_not_generated_twice(client):
    asked, data = message(OMNI)
    first = client.ask(data, asked.id, 30)
    second = client.ask(data, asked.id, 30)
    assert second.tokens == first.tokens
    assert second.times.llm_s == first.times.llm_s  # of the one time it was generated


def test_an_id_used_again_for_other_bytes_is_refused(client):
    asked, data = message(OMNI)
    client.ask(data, asked.id, 30)
    other = message(OMNI, asked, wire="float16")[1]
    with pytest.raises(RequestRefused, match="sent before, with other bytes") as refusal:
        client.ask(other, asked.id, 30)
    assert refusal.value.code is Status.ALREADY_EXISTS


def test_an_answer_goes_on_behind_the_tokens_that_came(servers):
    asked, data = message(OMNI)
    with EdgeClient(servers[OMNI]) as client:
        tokens = client.ask(data, asked.id, 30).tokens
    with grpc.insecure_channel(servers[OMNI]) as channel:
        start = start_of(data, asked.id, have=5)
        events = list(rpc.NodeStub(channel).Generate(pieces_of(data, start), timeout=60))
        assert tuple(event.token.token for event in events[:-1]) == tokens[5:]
        start = start_of(data, asked.id, have=99)
        with pytest.raises(grpc.RpcError) as refusal:
            list(rpc.NodeStub(channel).Generate(pieces_of(data, start), timeout=60))
    assert refusal.value.code() is Status.OUT_OF_RANGE


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

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(6)))
    assert results.count(tokens) == 2
    assert results.count(Status.RESOURCE_EXHAUSTED) == 4
    assert one(0) == tokens  # and then there is room again


def test_clients_at_once_get_the_answers_of_a_lone_one(servers):
    asked = [request(OMNI, text=f"question {number}".encode(), seed=number) for number in range(4)]
    alone = [monolithic(OMNI, one)[1] for one in asked]
    assert len(set(alone)) == 4

    def one(number):
        wanted, answers = number % 4, []
        with EdgeClient(servers[OMNI]) as client:
            for _ in range(3):
                mine = again(asked[wanted])
                answers.append(client.ask(message(OMNI, mine)[1], mine.id, 60).tokens)
        return all(answer == alone[wanted] for answer in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(4)))


def test_a_late_answer_is_a_missed_deadline_and_a_later_request_is_served(sluggish):
    asked = request("small-llava")
    with EdgeClient(sluggish) as client:
        begun_s = time.monotonic()
        with pytest.raises(DeadlineMissed, match=r"no complete answer in 0\.5 s"):
            client.ask(message("small-llava", asked)[1], asked.id, 0.5)
        assert time.monotonic() - begun_s < 2  # a whole answer takes longer
        short = type(asked)(asked.prompt, asked.items, 1)
        assert len(client.ask(message("small-llava", short)[1], short.id, 30).tokens) == 1


def test_a_node_that_is_not_there_is_named_with_the_tries():
    asked, data = message("small-llava")
    with EdgeClient("127.0.0.1:1") as client:
        with pytest.raises(NodeUnreachable, match=r"127\.0\.0\.1:1: no answer in 0\.5 s") as error:
            client.ask(data, asked.id, 0.5)
    assert error.value.tries > 1


def test_a_node_of_encoders_gives_the_features_that_would_be_made_here():
    asked = request(OMNI)
    with serving(Node(OMNI, load_encoders(OMNI, ["image", "audio"]))) as node:
        with EdgeClient(node) as client:
            assert list(client.describe().encoders) == ["image", "audio"]
            only = type(asked)(asked.prompt, asked.items[:2], 1)
            for cut in ("encoder", "projector"):
                parts, times = client.encode(only, halves(OMNI)[0].identity, 30, cut)
                for ours, theirs in zip(parts_of(OMNI, only, cut), parts, strict=True):
                    assert torch.equal(ours.features, theirs.features)
                    assert ours.layout == theirs.layout and ours.cut == theirs.cut
                assert times.encode_s > 0
            short = Item("audio", np.zeros(161, np.int16))
            only = type(asked)(asked.prompt, (asked.items[0], short), 1)
            with pytest.raises(RequestRefused, match="audio of 161 cannot be prepared") as refusal:
                client.encode(only, halves(OMNI)[0].identity, 30)
            assert refusal.value.code is Status.INVALID_ARGUMENT
            with pytest.raises(RequestRefused, match="video: this model takes image, audio"):
                client.encode(asked, halves(OMNI)[0].identity, 30)
            with pytest.raises(RequestRefused, match="holds no LLM") as refusal:
                client.ask(message(OMNI)[1], "x", 10)
            assert refusal.value.code is Status.UNIMPLEMENTED


def test_a_node_with_both_halves_answers_raw_requests_alike(whole):
    asked = request(OMNI)
    with EdgeClient(whole) as client:
        answer = client.ask(pack(asked, halves(OMNI)[0].identity), asked.id, 30)
        assert answer.tokens == monolithic(OMNI, asked)[1]
        assert answer.times.encode_s > 0 and answer.times.llm_s > 0


def test_raw_requests_are_refused_where_there_are_no_encoders(client):
    asked = request(OMNI)
    with pytest.raises(RequestRefused, match="cut at input, this server takes") as refusal:
        client.ask(pack(asked, halves(OMNI)[0].identity), asked.id, 10)
    assert refusal.value.code is Status.FAILED_PRECONDITION


def test_a_slower_device_is_imitated(servers, sluggish):
    asked, data = message("small-llava")

    def llm_s(node):
        with EdgeClient(node) as client:
            return client.ask(data, asked.id, 60).times.llm_s

    assert llm_s(sluggish) > 6 * llm_s(servers["small-llava"])


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
        (["--no-llm"], "encoders, an LLM, or both"),
        (["--llm-slowdown", "0.5"], "--llm-slowdown 0.5: expected 1 or more"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--host", "0.0.0.0", "--token-file", __file__], "a token neither"),
    ],
)
def test_a_wrong_call_of_a_node_says_why(options, reason, capsys):
    with pytest.raises((ValueError, SystemExit)) as ended:
        llm_server.main(options)
    assert reason in str(ended.value) + capsys.readouterr().err


def test_a_port_in_use_is_named(servers):
    port = servers[OMNI].rpartition(":")[2]
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        llm_server.main(["--port", port])
