import json
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from decoupled import MODALITIES, halves, parts_of, request
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from mllm_sched.pipeline.requests import WIRE_TYPES, Item, Part
from mllm_sched.pipeline.wire import (
    MismatchError,
    Rules,
    WireError,
    dequantised,
    pack,
    quantised,
    read_parts,
    unpack,
    wire_bytes,
)

NAME = "small-qwen2.5-omni"


def rules(name=NAME, **limits):
    return Rules(halves(name)[1], **limits)


@cache
def packed(name=NAME, cut="projector", wire="float32", modalities=None, **options):
    asked = request(name, modalities)
    parts = parts_of(name, asked, cut)
    return asked, parts, pack(asked, halves(name)[1].identity, parts, wire, **options)


@pytest.mark.parametrize("cut", ["encoder", "projector"])
@pytest.mark.parametrize("name", MODALITIES)
def test_features_arrive_as_they_were_sent(name, cut):
    asked, parts, data = packed(name, cut)
    message = unpack(data, rules(name))
    assert message.prompt == tuple(asked.prompt) and message.header.id == asked.id
    for sent, came in zip(parts, message.parts, strict=True):
        assert torch.equal(sent.features, came.features)
        assert (sent.modality, sent.cut, sent.layout) == (came.modality, came.cut, came.layout)


@given(
    rows=st.integers(1, 8),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
    size=st.floats(1e-3, 1e3),
)
def test_what_a_type_loses_is_bounded(rows, width, seed, size):
    features = size * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    largest = features.abs().amax(-1, keepdim=True)
    bounds = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.51 / 127}
    for wire in WIRE_TYPES:
        sent = quantised(features, wire)
        assert sum(t.numel() * t.element_size() for t in sent.values()) == wire_bytes(
            rows, width, wire
        )
        back = dequantised(sent[""], sent.get(".scale"))
        assert ((back - features).abs() <= bounds[wire] * largest + 1e-7 * size).all()


def test_features_that_cannot_be_sent_together_or_in_a_type_are_refused():
    asked, parts, _ = packed()
    for wrong, wire, reason in (
        ([Part("image", "encoder", parts[0].features, parts[0].layout)], "float32", "one cut"),
        ([replace(parts[0], features=1e6 * parts[0].features)], "float16", "as bfloat16"),
    ):
        with pytest.raises(ValueError, match=reason):
            pack(asked, halves(NAME)[1].identity, [*wrong, *parts[1:]], wire)


def test_features_must_be_finite_in_the_type_of_the_model_too():
    data = edited(packed()[2], tensors={"part0": torch.full((6, 128), 1e6)})
    narrow = rules()
    assert unpack(data, narrow).parts
    narrow.dtype = torch.float16
    with pytest.raises(WireError, match="too large for the model's type"):
        unpack(data, narrow)


def test_endless_sound_is_refused_before_it_is_encoded():
    samples = Item("audio", np.zeros(16000 * 1201, np.int16))
    with pytest.raises(WireError, match="at most 1200 s"):
        rules().check_item(samples)


def test_a_reply_that_is_none_is_refused():
    _, _, data = packed()
    with pytest.raises(WireError, match="raw items instead"):
        read_parts(pack(request(NAME), halves(NAME)[0].identity))
    for broken in (data + b"more", data[:-5]):
        with pytest.raises(WireError, match="not a safetensors message"):
            read_parts(broken)


def test_limits_of_a_server():
    short = rules()
    short.max_tokens = 60
    for taken, error, reason in (
        (rules(max_new_tokens=4), WireError, "max_new_tokens=12: at most 4"),
        (rules(max_logits_bytes=1000), WireError, "logits of the prompt are"),
        (rules(cuts=("input",)), MismatchError, "cut at projector, this server takes input"),
        (short, WireError, "tokens with the answer: at most 60"),
    ):
        with pytest.raises(error, match=reason):
            unpack(packed(logits=True)[2], taken)


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["request"])


def edited(data, *, request=None, tensors=None, part=None, drop=()):
    header = header_of(data)
    for index, fields in (part or {}).items():
        header["parts"][index] |= fields
    header |= request or {}
    for name in drop:
        del header[name]
    kept = {**load(data), **(tensors or {})}
    kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
    return save(kept, metadata={"request": json.dumps(header)})


def malformed():
    """Name to bytes, and what the refusal must say."""
    asked, _, good = packed()
    features, first = load(good), header_of(good)["parts"][:1]
    image = features["part0"]
    nan = image.clone()
    nan[3, 5] = torch.nan
    prompt = features["prompt"]
    int8 = packed(wire="int8")[2]
    raw = pack(asked, halves(NAME)[0].identity)
    length = int.from_bytes(good[:8], "little")

    def tensors(data=good, **changed):
        return edited(data, tensors=changed)

    def pixels(*shape):
        return torch.zeros(shape, dtype=torch.uint8)

    return {
        "seven bytes": (good[:7], "too short"),
        "garbage": (bytes(range(1, 250)), "at most 65536"),
        "huge header": ((1 << 40).to_bytes(8, "little") + b"{}", "at most 65536"),
        "header cut off": (good[: 8 + length // 2], "of the header"),
        "tensors cut off": (good[:-50], "safetensors"),
        "trailing bytes": (good + b"more", "safetensors"),
        "no JSON": ((4).to_bytes(8, "little") + b"{{{{", "no valid JSON"),
        "no object": ((2).to_bytes(8, "little") + b"[]", "expected an object"),
        "deep nesting": (with_raw(b"[" * 60000), "no valid JSON"),
        "no metadata": (save(features), "no request"),
        "key twice": (with_raw(b'{"a": 1, "a": 2}'), "stands twice"),
        "request no JSON": (save(features, metadata={"request": "hello"}), "no valid JSON"),
        "long version": (edited(good, request={"version": "x" * 5000}), "version 'xxx"),
        "sides of a thousand digits": (edited(good, part={0: {"grid": 3 * [10**1000]}}), "grid="),
        "newer version": (edited(good, request={"version": 2}), "version 2"),
        "unknown field": (edited(good, request={"pickle": "x"}), "pickle missing or unknown"),
        "missing field": (edited(good, drop=["logits"]), "logits missing or unknown"),
        "empty id": (edited(good, request={"id": ""}), "id=''"),
        "long id": (edited(good, request={"id": "x" * 65}), "id="),
        "half a surrogate for an id": (edited(good, request={"id": "\ud800"}), "id="),
        "half a surrogate for a model": (edited(good, request={"model": "\ud800"}), "made for"),
        "half a surrogate for a field": (edited(good, request={"\ud800": 1}), "unknown"),
        "wrong model": (edited(good, request={"model": "0" * 64}), "made for model 0000"),
        "unknown cut": (edited(good, request={"cut": "middle"}), "cut='middle'"),
        "unknown wire": (edited(good, request={"wire": "float64"}), "wire='float64'"),
        "wire of another type": (edited(good, request={"wire": "float16"}), "expected F16"),
        "cut of another width": (edited(good, request={"cut": "encoder"}), "expected F32 [24, 64]"),
        "no new tokens": (edited(good, request={"max_new_tokens": 0}), "max_new_tokens='0'"),
        "endless answer": (edited(good, request={"max_new_tokens": 10**9}), "max_new_tokens"),
        "parts no list": (edited(good, request={"parts": {}}), "parts="),
        "part no object": (edited(good, request={"parts": [1, 2, 3]}), "part="),
        "too many parts": (edited(good, request={"parts": 65 * first}), "65 items"),
        "unknown modality": (edited(good, part={0: {"modality": "smell"}}), "modality='smell'"),
        "swapped modality": (edited(good, part={0: {"modality": "audio"}}), "mel_frames=None"),
        "grid a number": (edited(good, part={0: {"grid": 5}}), "grid='5'"),
        "negative grid": (edited(good, part={0: {"grid": [1, -4, -6]}}), "grid="),
        "odd grid": (edited(good, part={0: {"grid": [1, 3, 8]}}), "multiples of 2"),
        "other grid": (edited(good, part={0: {"grid": [1, 8, 6]}}), "expected F32 [12, 128]"),
        "huge grid": (edited(good, part={0: {"grid": [1, 2**20, 2**20]}}), "patches"),
        "image in time": (edited(good, part={0: {"grid": [2, 4, 6]}}), "one step in time"),
        "grid of halves": (edited(good, part={0: {"grid": [1, 4.0, 6.0]}}), "grid="),
        "no seconds": (edited(good, part={2: {"seconds_per_grid": None}}), "seconds_per_grid"),
        "endless seconds": (edited(good, part={2: {"seconds_per_grid": 1e300}}), "seconds_per"),
        "rate of features": (edited(good, part={1: {"rate_hz": 16000.0}}), "features have none"),
        "NaN": (tensors(part0=nan), "NaN or infinite"),
        "NaN in a scale": (
            edited(int8, tensors={"part0.scale": torch.full((6, 1), torch.nan)}),
            "NaN or infinite",
        ),
        "scale missing": (edited(int8, tensors={"part0.scale": None}), "missing or unknown"),
        "equal size, wrong width": (tensors(part0=image.reshape(12, 64)), "expected F32 [6, 128]"),
        "float64": (tensors(part0=image.double()), "F64"),
        "tensor missing": (tensors(part2=None), "part2 missing"),
        "no prompt": (tensors(prompt=None), "prompt missing"),
        "empty prompt": (tensors(prompt=prompt[:0]), "prompt of shape (0,)"),
        "square prompt": (tensors(prompt=prompt[None]), "prompt of shape"),
        "token too large": (tensors(prompt=prompt + 320), "token ids"),
        "token negative": (tensors(prompt=prompt - 320), "token ids"),
        "prompt of halves": (tensors(prompt=prompt.float()), "expected I32"),
        "raw of floats": (tensors(raw, part0=torch.rand(60, 90, 3)), "expected U8"),
        "raw grey": (tensors(raw, part0=pixels(60, 90, 1)), "1 channels"),
        "raw audio at 8 kHz": (edited(raw, part={1: {"rate_hz": 8000.0}}), "resample"),
        "raw without rate": (edited(raw, part={1: {"rate_hz": None}}), "rate_hz"),
        "raw thin as a thread": (tensors(raw, part0=pixels(2, 20000, 3)), "at most 8192 along"),
        "raw of endless frames": (tensors(raw, part2=pixels(4000, 4, 4, 3)), "4000 frames"),
        "raw with a grid": (edited(raw, part={0: {"grid": [1, 4, 6]}}), "rate_hz"),
    }


def with_raw(text):
    return len(text).to_bytes(8, "little") + text


MALFORMED = malformed()


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_message_is_refused_with_its_reason(name):
    data, reason = MALFORMED[name]
    with pytest.raises(WireError) as refusal:
        unpack(data, rules())
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 300


@given(st.data())
def test_a_damaged_message_is_refused_or_still_valid_never_a_crash(draw):
    data = bytearray(packed(modalities=("image",))[2])
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(data) - 1))
        data[place] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    for damaged in (bytes(data), bytes(data[:cut])):
        try:
            message = unpack(damaged, rules())
        except WireError:
            continue
        (part,) = message.parts
        assert part.features.shape == (6, 128) and part.features.isfinite().all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(["version", "id", "model", "cut", "wire", "parts", "max_new_tokens"])
PART_FIELDS = st.sampled_from(["modality", "grid", "seconds_per_grid", "mel_frames", "rate_hz"])


@settings(max_examples=60)
@given(field=FIELDS, part_field=PART_FIELDS, value=JSON)
def test_any_value_in_any_field_is_refused_or_harmless(field, part_field, value):
    good = packed()[2]
    for changed in (
        lambda: edited(good, request={field: value}),
        lambda: edited(good, part={0: {part_field: value}}),
    ):
        with suppress(WireError):  # anything else is a crash
            assert unpack(changed(), rules()).prompt


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (("smell", PIXELS), "modality='smell'"),
        (("image", PIXELS.astype(float)), "float64 of shape"),
        (("image", PIXELS[:0]), "none of them 0"),
        (("audio", np.zeros(9, np.int16), 44100.0), "resample it to 16000 Hz"),
        (("video", np.zeros((2, 4, 4, 3), np.uint8), 0), "rate_hz=0"),
    ],
)
def test_an_invalid_item_is_refused_with_its_reason(item, reason):
    with pytest.raises(ValueError, match=reason):
        Item(*item)


def test_the_prompt_must_fit_its_items():
    language = halves(NAME)[1]
    asked = request(NAME)
    layouts = [(part.modality, part.layout) for part in parts_of(NAME, asked)]
    prompt = list(asked.prompt)
    with pytest.raises(ValueError, match="no placeholder for 1 of 3"):
        language.ids(prompt[:7] + prompt[10:], layouts)
    with pytest.raises(ValueError, match="token 2 stands for image, parts do not"):
        language.ids(prompt, layouts[1:])
    with pytest.raises(ValueError, match="is not between"):
        language.ids([prompt[0], *prompt[2:]], layouts)
    with pytest.raises(ValueError, match="marker 263 without an item"):
        language.ids([*prompt, 263], layouts)
