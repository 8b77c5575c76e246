import subprocess
import sys

import numpy as np
import pytest
import torch
from decoupled import (
    MODALITIES,
    NEW_TOKENS,
    halves,
    item,
    monolithic,
    parts_of,
    request,
    whole,
)
from transformers import BertConfig

from mllm_sched.pipeline.architectures import UnsupportedError
from mllm_sched.pipeline.checkpoints import (
    bare_encoders,
    checkpoint_identity,
    load_encoders,
    load_language,
)
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.small_models import build, small_config, small_model
from mllm_sched.pipeline.split import split
from mllm_sched.pipeline.wire import Rules, pack, unpack

NAMES = list(MODALITIES)


def logits_of(language, prompt, parts):
    return next(language.generate(prompt, parts, 1, of_prompt=True))[1]


def tokens_of(language, prompt, parts):
    return tuple(token for token, _ in language.generate(prompt, parts, NEW_TOKENS))


@pytest.mark.parametrize("cut", ["encoder", "projector"])
@pytest.mark.parametrize("name", NAMES)
def test_two_halves_give_the_logits_of_the_whole_model_to_the_last_bit(name, cut):
    asked = request(name)
    logits, tokens = monolithic(name, asked)
    parts = parts_of(name, asked, cut)
    language = halves(name)[1]
    for of_prompt, rows in ((False, 1), (True, logits.shape[1])):
        answer = list(language.generate(asked.prompt, parts, NEW_TOKENS, of_prompt=of_prompt))
        assert tuple(token for token, _ in answer) == tokens and len(tokens) == NEW_TOKENS
        assert len(answer[0][1]) == rows
    assert torch.equal(answer[0][1], logits[0])


@pytest.mark.parametrize("name", NAMES)
def test_halves_in_half_precision_take_what_the_wire_brings(name):
    encoders = load_encoders(name, dtype="bfloat16")
    language = load_language(name, dtype="bfloat16")
    asked = request(name)
    for cut in ("encoder", "projector"):
        parts = [encoders.encode(each, cut) for each in asked.items]
        sent = unpack(pack(asked, encoders.identity, parts, "bfloat16"), Rules(language))
        answer = tokens_of(language, asked.prompt, sent.parts)
        assert answer == tokens_of(language, asked.prompt, parts)


def test_a_picture_three_pixels_high_is_not_taken_for_three_colours():
    pixels = np.zeros((3, 40, 3), np.uint8)
    pixels[..., 0] = 255  # red: read the wrong way round, its rows would be its colours
    inputs, layout = halves("small-qwen2.5-omni")[0].prepare(Item("image", pixels))
    assert layout.grid[2] > layout.grid[1]
    colours = inputs["pixel_values"].unflatten(1, (3, -1))
    assert (colours.amax((0, 2)) - colours.amin((0, 2)) < 1e-5).all()
    inputs, _ = halves("small-llava")[0].prepare(Item("image", pixels))
    (red, green, blue) = inputs["pixel_values"][0].mean((1, 2)).tolist()
    assert red > 1 > green and red > 1 > blue


@pytest.mark.parametrize("name", NAMES)
def test_a_half_without_weights_prepares_items_as_one_with_them(name):
    bare, whole_half = bare_encoders(name), halves(name)[0]
    modules = [bare.model, *bare.projectors.values()]
    assert all(weights.is_meta for module in modules for weights in module.parameters())
    assert (bare.identity, bare.modalities) == (whole_half.identity, whole_half.modalities)
    for modality in MODALITIES[name]:
        inputs, layout = bare.prepare(item(modality))
        expected, same_layout = whole_half.prepare(item(modality))
        assert layout == same_layout
        assert all(torch.equal(inputs[key], expected[key]) for key in expected)


def test_a_text_after_a_video_is_answered_as_if_no_video_had_been():
    language = halves("small-qwen2.5-vl")[1]
    text = [257, *b"plain text"]
    before = logits_of(language, text, ())
    asked = request("small-qwen2.5-vl")
    tokens_of(language, asked.prompt, parts_of("small-qwen2.5-vl", asked))
    assert torch.equal(logits_of(language, text, ()), before)


@pytest.mark.parametrize("name", NAMES)
def test_neither_half_holds_the_others_modules_and_the_model_stays_whole(name):
    model = whole(name)
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    encoders, language = split(model, name)
    edge = {key for key, _ in encoders.model.named_parameters()}
    server = {key for key, _ in language.model.named_parameters()}
    assert not any("language_model" in key or "lm_head" in key for key in edge)
    assert server and all("language_model" in key or "lm_head" in key for key in server)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before
    total = sum(weight.numel() * 4 for weight in model.parameters())
    shared = sum(
        weight.numel() * 4
        for module in {id(p): p for p in encoders.projectors.values()}.values()
        for weight in module.parameters()
    )
    assert encoders.memory_bytes + language.memory_bytes == total + shared


def test_an_unsupported_checkpoint_is_told_what_is_supported_and_how_to_add_it(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"'bert'.*llava.*qwen2_5_vl.*derive a class"):
        load_encoders(f"hf:{tmp_path}")


def test_encoders_of_some_modalities_alone():
    encoders = halves("small-qwen2.5-omni")[0]
    audio = encoders.only(["audio"])
    assert audio.modalities == ("audio",)
    assert audio.memory_bytes < encoders.memory_bytes
    theirs, ours = encoders.encode(item("audio")), audio.encode(item("audio"))
    assert torch.equal(theirs.features, ours.features)
    for wrong, reason in (
        (lambda: audio.encode(item("image")), "no encoder for image"),
        (lambda: audio.encode(item("audio"), "input"), "cut='input'"),
        (lambda: audio.only(["video"]), "no encoder for video; this model has: audio"),
    ):
        with pytest.raises(ValueError, match=reason):
            wrong()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model("small-qwen2.5-vl", seed=3).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_loaded_by_halves_and_answers_as_the_whole(checkpoint):
    encoders, language = load_encoders(f"hf:{checkpoint}"), load_language(f"hf:{checkpoint}")
    bare = bare_encoders(f"hf:{checkpoint}")
    assert encoders.identity == language.identity == bare.identity
    assert all(weight.is_meta for weight in bare.model.parameters())
    asked = request("small-qwen2.5-vl")
    reference = split(small_model("small-qwen2.5-vl", seed=3), "whole")
    parts = [encoders.encode(each) for each in asked.items]
    theirs = [reference[0].encode(each) for each in asked.items]
    logits = logits_of(language, asked.prompt, parts)
    assert torch.equal(logits, logits_of(reference[1], asked.prompt, theirs))
    assert encoders.memory_bytes == reference[0].memory_bytes
    assert language.memory_bytes == reference[1].memory_bytes
    assert not any(weight.is_meta for weight in encoders.model.state_dict().values())
    assert not any(weight.is_meta for weight in language.model.state_dict().values())


def test_other_weights_are_another_identity(checkpoint, tmp_path):
    small_model("small-qwen2.5-vl", seed=4).save_pretrained(tmp_path)
    assert checkpoint_identity(str(tmp_path)) != checkpoint_identity(str(checkpoint))


def test_unknown_names_and_types_are_named():
    with pytest.raises(ValueError, match=r"model 'gpt': expected one of small-llava"):
        load_language("gpt")
    with pytest.raises(ValueError, match=r"dtype='int4': expected one of float32"):
        load_language("small-llava", dtype="int4")


# Peak memory from the kernel's own account, which begins anew with every program.
MEMORY = """
import re, sys
from pathlib import Path
from mllm_sched.pipeline import checkpoints
import transformers.models.llava.modeling_llava
from accelerate import hooks
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
half = getattr(checkpoints, sys.argv[2])("hf:" + sys.argv[1])
touched = sum(float(weight.sum()) for weight in half.model.parameters())
print(half.memory_bytes, peak() - before)
"""


@pytest.mark.slow
def test_the_edge_never_reads_the_llm_into_memory(tmp_path):
    """Weighed with a 200 MB LLM behind a small encoder."""
    config = small_config("small-llava")
    config.text_config.intermediate_size = 32768
    config.text_config.num_hidden_layers = 4
    build(config).save_pretrained(tmp_path)

    def weighed(loader):
        command = [sys.executable, "-c", MEMORY, str(tmp_path), loader]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return map(int, done.stdout.split())

    edge, edge_grown = weighed("load_encoders")
    server, server_grown = weighed("load_language")
    assert edge < 2e6 and server > 150e6
    assert server_grown > 0.8 * server
    assert edge_grown < 0.3 * server
