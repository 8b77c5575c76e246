"""The vLLM adapter against an imitation of the documented endpoint; no vLLM is in the house."""

import base64
import contextlib
import io
import json
import time

import grpc
import pytest
import torch
from decoupled import halves, item
from fake_vllm import (
    ANSWER,
    KEY,
    MODEL,
    WIDTH,
    FakeVLLM,
    busy,
    dropped_amid,
    dropped_before_any_token,
    endless,
    says,
    slow_to_answer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_sched.edge.vllm import VLLMClient
from mllm_sched.edge.vllm_wire import Chunk, ServerError, StreamError, chunk_of, content_of, data_of
from mllm_sched.pipeline.node_errors import (
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.requests import Layout, Part
from mllm_sched.pipeline.security import Security

SECURITY = Security(KEY)
REFUSAL = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}


def part(tokens=16, modality="image", cut="projector", **layout):
    features = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(tokens))
    return Part(modality, cut, features, Layout(**layout))


IMAGE = part()


def asked(server, parts=(IMAGE,), *, tokens=64, deadline_s=20.0, prompt="What is it?", **options):
    with VLLMClient(server.url, MODEL, SECURITY, **options) as client:
        return client.ask(parts, prompt, tokens, "request", deadline_s)


def refused(fault, expected=RequestRefused, **options):
    """The error, and how often the server was called."""
    with FakeVLLM(fault=fault) as server:
        with pytest.raises(expected) as caught:
            asked(server, **options)
    return caught.value, server.calls


def test_an_image_of_a_real_encoder_arrives_bit_for_bit_and_is_answered():
    encoders, _ = halves("small-llava")
    sent = encoders.encode(item("image"))
    assert sent.features.shape[1] == WIDTH
    with FakeVLLM() as server:
        answer = asked(server, (sent,), wire="float32")
    ((body, (tensors,)),) = server.seen
    assert torch.equal(tensors["image_embeds"], sent.features)
    assert body["messages"][0]["content"][-1]["text"] == "What is it?"
    assert (answer.text, answer.tokens, answer.finish) == (
        "".join(ANSWER),
        (100, 101, 102, 103),
        "stop",
    )
    assert 0 < answer.first_token_s <= answer.total_s


def test_a_grid_goes_with_the_features_of_a_model_that_needs_it():
    encoders, _ = halves("small-qwen2.5-vl")
    sent = encoders.encode(item("image"))
    assert sent.features.shape[1] == WIDTH
    with FakeVLLM(grid=True) as server:
        asked(server, (sent,))
    ((_, (tensors,)),) = server.seen
    assert tuple(tensors["image_grid_thw"].tolist()) == sent.layout.grid


def test_each_of_several_items_is_a_part_of_its_own_in_order():
    with FakeVLLM() as server:
        asked(server, (part(4), part(9), part(3, "audio")))
    ((_, tensors),) = server.seen
    assert [len(next(iter(each.values()))) for each in tensors] == [4, 9, 3]
    assert "audio_embeds" in tensors[2]


@pytest.mark.parametrize("wire", ["float32", "float16", "bfloat16"])
def test_features_travel_in_the_type_that_was_chosen(wire):
    with FakeVLLM() as server:
        asked(server, wire=wire)
    ((_, (tensors,)),) = server.seen
    assert tensors["image_embeds"].dtype is getattr(torch, wire)


def test_a_slice_of_a_large_tensor_brings_its_own_bytes_alone():
    large = torch.zeros(4096, WIDTH)
    sent = content_of(Part("image", "projector", large[:4], Layout()), "float32")["image_embeds"]
    assert len(base64.b64decode(sent)) < 8 * 4 * WIDTH + 2048


def test_an_answer_cut_at_its_longest_says_so():
    with FakeVLLM() as server:
        answer = asked(server, tokens=2)
    assert (answer.text, answer.finish) == ("A grey ", "length")


def test_no_cache_identity_is_shared_between_users_and_the_salt_is_theirs():
    with FakeVLLM() as server, VLLMClient(server.url, MODEL, SECURITY) as client:
        client.ask([part()], "What?", 8, "a", 20.0, salt="only-annas")
    ((body, _),) = server.seen
    assert body["cache_salt"] == "only-annas"
    assert all("uuid" not in each for each in body["messages"][0]["content"])


def test_the_first_pieces_come_while_the_server_still_works():
    with FakeVLLM(fault=endless) as server, VLLMClient(server.url, MODEL, SECURITY) as client:
        pieces = client.events([part()], "What?", 8, "request", 20.0)
        chunk, tries = next(pieces)
        pieces.close()
    assert (chunk.text, chunk.tokens, tries) == ("and ", (7,), 1)


def test_a_wrong_key_is_refused_and_told_of_without_the_key():
    with FakeVLLM(key="another") as server:
        with pytest.raises(RequestRefused, match="Unauthorized") as caught:
            asked(server)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED and KEY not in str(caught.value)


def test_a_server_that_takes_no_embeddings_says_which_flag_it_needs():
    with FakeVLLM(embeds=False) as server:
        with pytest.raises(RequestRefused, match="--enable-mm-embeds"):
            asked(server)
    assert server.calls == 1


def test_another_model_is_refused():
    with FakeVLLM() as server, VLLMClient(server.url, "other", SECURITY) as client:
        with pytest.raises(RequestRefused, match="`other` does not exist") as caught:
            client.ask([part()], "What?", 8, "request", 20.0)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("status", "body", "told", "code"),
    [
        (400, REFUSAL, "no", grpc.StatusCode.INVALID_ARGUMENT),
        (400, {"object": "error", "message": "of old", "code": 400}, "of old", None),
        (422, b"<html>", "<html>", grpc.StatusCode.INVALID_ARGUMENT),
        (500, b"", "no reason given", grpc.StatusCode.INTERNAL),
        (307, b"", "no reason given", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_will_not_be_served_is_asked_once_and_the_reason_told(status, body, told, code):
    error, calls = refused(busy(status, body))
    assert told in str(error) and calls == 1
    assert code in (None, error.code)


def test_too_many_requests_mean_busy_and_are_not_sent_again():
    error, calls = refused(busy(429, REFUSAL), NodeBusy)
    assert calls == 1 and error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_server_that_is_not_there_yet_is_asked_again():
    with FakeVLLM(fault=busy(503, b"", times=2)) as server:
        answer = asked(server)
    assert answer.text == "".join(ANSWER) and answer.tries == 3


def test_a_server_that_never_gets_ready_is_unreachable():
    error, calls = refused(busy(503, b"starting"), NodeUnreachable, deadline_s=0.5)
    assert calls > 1 and "starting" in str(error)


def test_nobody_there_is_unreachable():
    with FakeVLLM() as server:
        pass
    with pytest.raises(NodeUnreachable):
        asked(server, deadline_s=0.3)


def test_a_stream_that_breaks_before_the_first_token_is_asked_for_again():
    with FakeVLLM(fault=dropped_before_any_token) as server:
        answer = asked(server)
    assert answer.text == "".join(ANSWER) and answer.tries == 2
    assert len({body["request_id"] for body, _ in server.seen}) == 2


def test_a_stream_that_breaks_after_a_token_is_not_generated_twice():
    error, calls = refused(dropped_amid, NodeUnreachable)
    assert calls == 1 and "not asked for twice" in str(error)


def test_a_first_token_that_comes_too_late_misses_the_deadline():
    with FakeVLLM(first_s=30.0) as server:
        with pytest.raises(DeadlineMissed):
            asked(server, deadline_s=0.4)
    assert server.calls == 1


def test_silence_before_the_headers_misses_the_deadline():
    error, _ = refused(slow_to_answer(1.5), DeadlineMissed, deadline_s=0.4)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_tokens_that_trickle_for_ever_end_at_the_deadline():
    begun_s = time.monotonic()
    refused(endless, DeadlineMissed, deadline_s=0.6)
    assert time.monotonic() - begun_s < 10


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["data: {no json\n\n"], "no json"),
        (["event: message\n\n"], "expected a line of data"),
        (['data: {"choices": [{"delta": {"content": 7}}]}\n\n'], "valid string"),
        (['data: {"choices": [{"delta": {}}, {"delta": {}}]}\n\n'], "2 answers"),
        (["data: " + "x" * (1 << 21)], "a line beyond"),
        (["data: [DONE]\n\n"], "ended by 'nothing'"),
        (
            [
                'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n',
                "data: [DONE]\n\n",
            ],
            "abort",
        ),
    ],
)
def test_a_stream_that_is_not_as_documented_is_refused(lines, told):
    error, calls = refused(says(*lines))
    assert told in str(error) and calls == 1 and error.code is grpc.StatusCode.DATA_LOSS


def test_an_error_within_the_stream_is_told():
    said = {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}
    error, calls = refused(says(f"data: {json.dumps(said)}\n\n", "data: [DONE]\n\n"))
    assert "EngineCore died" in str(error) and calls == 1
    assert error.code is grpc.StatusCode.INTERNAL


def test_a_request_beyond_the_limit_is_not_sent():
    error, calls = refused(None, max_bytes=1000)
    assert "the limit is 1000" in str(error) and calls == 0


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (part(modality="video"), "takes embeddings of image and audio"),
        (part(cut="encoder"), "cut at encoder"),
        (Part("image", "projector", torch.zeros(1, 4, WIDTH), Layout()), "expected"),
        (Part("image", "projector", torch.full((4, WIDTH), torch.nan), Layout()), "NaN"),
        (Part("image", "projector", torch.full((4, WIDTH), torch.inf), Layout()), "infinite"),
    ],
)
def test_what_the_protocol_cannot_say_is_an_error_of_the_caller(sent, told):
    with FakeVLLM() as server:
        with pytest.raises(ValueError, match=told):
            asked(server, (sent,))
    assert server.calls == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"wire": "int8"}, "int8"),
        ({"prompt": " "}, "prompt"),
        ({"tokens": 0}, "max_new_tokens"),
        ({"deadline_s": 0}, "deadline_s"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(options, told):
    with FakeVLLM() as server, pytest.raises(ValueError, match=told):
        asked(server, **options)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected http"):
        VLLMClient(url, MODEL)


def test_features_and_key_cross_no_network_in_the_clear_unless_that_is_meant():
    with pytest.raises(ValueError, match="in the clear"):
        VLLMClient("http://vllm.example:8000", MODEL, SECURITY)
    VLLMClient("http://vllm.example:8000", MODEL, SECURITY, is_open=True).close()


def test_no_proxy_of_the_environment_sees_a_request(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeVLLM() as server:
        assert asked(server).finish == "stop"


def test_what_is_sent_holds_nothing_but_tensors():
    sent = content_of(part(grid=(1, 8, 8)), "bfloat16")["image_embeds"]
    for text in sent.values():
        assert isinstance(
            torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True), torch.Tensor
        )


@settings(max_examples=30)
@given(st.lists(st.text("ab{}é", max_size=8), max_size=5), st.integers(1, 7))
def test_events_are_the_same_however_the_network_cuts_them(events, size):
    stream = "".join(f"data: {event}\r\n\r\n" for event in [*events, "[DONE]"]).encode()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert list(data_of(pieces)) == events


@settings(max_examples=30)
@given(st.text(max_size=60))
def test_no_event_however_odd_is_more_than_an_error_of_the_stream(data):
    with contextlib.suppress(StreamError, ServerError):
        assert isinstance(chunk_of(data), Chunk)
