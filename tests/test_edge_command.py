"""The commands ``serve-llm`` and ``edge``, as a user calls them."""

import re
import wave

import pytest
from decoupled import halves, node_here, serving
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from mllm_sched.cli import main
from mllm_sched.pipeline import media
from mllm_sched.pipeline.checkpoints import load_language
from mllm_sched.pipeline.llm_server import Node
from mllm_sched.pipeline.media import h264
from mllm_sched.pipeline.options import Limits
from mllm_sched.pipeline.requests import TextStream, decode_text, encode_text
from mllm_sched.pipeline.small_models import small_model
from mllm_sched.pipeline.split import markers_of

MODEL = "small-qwen2.5-omni"


@pytest.fixture(scope="module")
def server():
    with node_here(MODEL, limits=Limits(2)) as address:
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(media.photograph("flower", 60, 90)).save(folder / "flower.png")
    with wave.open(str(folder / "speech.wav"), "wb") as sound:
        sound.setparams((2, 2, 44100, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 44100))
    frames = media.panned_video("china", 2.0, 10.0, 64, 96)
    (folder / "pan.mp4").write_bytes(h264(frames, 10.0, 200_000))
    (folder / "notes.txt").write_text("no picture")
    return folder


def ask(server, *options):
    return main(["edge", "--server", server, "--model", MODEL, *map(str, options)])


def test_a_picture_sound_and_video_are_asked_about(server, files, capsys):
    options = ["--image", files / "flower.png", "--audio", files / "speech.wav"]
    options += ["--video", files / "pan.mp4", "--fps", 5, "--max-new-tokens", 5]
    assert ask(server, *options, "--prompt", "What is this?") == 0
    told = capsys.readouterr()
    assert told.out.strip()
    assert re.search(r"5 tokens in \d.*encoding .*transmission .*LLM .* tries", told.err)
    raw = 60 * 90 * 3 + 2 * 16000 + 10 * 64 * 96 * 3
    assert f"for {raw} of raw input" in told.err


def test_text_alone_and_other_cuts_and_types(server, files, capsys):
    assert ask(server, "--prompt", "hello", "--max-new-tokens", 3) == 0
    picture, sent = ["--image", files / "flower.png", "--max-new-tokens", 3], []
    for cut, wire in (("encoder", "float32"), ("projector", "float32"), ("projector", "int8")):
        assert ask(server, *picture, "--cut", cut, "--wire", wire) == 0
        sent += re.findall(r"(\d+) bytes sent", capsys.readouterr().err.splitlines()[-1])
    assert int(sent[0]) > int(sent[1]) > int(sent[2])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--image", "notes.txt"], "no picture that can be read"),
        (["--audio", "notes.txt"], "nothing that FFmpeg can read"),
        (["--audio", "pan.mp4"], "a video; give it as one"),
        (["--video", "speech.wav"], "no video in it"),
        (["--video", "pan.mp4", "--fps", "50"], "has 10 frames a second"),
        (["--image", "missing.png"], "missing.png"),
        ([], "nothing to ask"),
    ],
)
def test_a_wrong_file_is_one_line(server, files, capsys, monkeypatch, options, reason):
    monkeypatch.chdir(files)
    assert ask(server, *options) == 2
    told = capsys.readouterr().err.strip()
    assert reason in told and told.startswith("mllm-sched: ") and "\n" not in told


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--prompt hello", "--server HOST:PORT is missing"),
        ("--server {server} --model small-llava --image {files}/flower.png", "made for model"),
        ("--server 127.0.0.1:1 --prompt x --deadline 0.3", "no answer in 0.3 s"),
    ],
)
def test_an_edge_needs_a_server_and_the_same_model(server, files, capsys, options, reason):
    assert main(["edge", *options.format(server=server, files=files).split()]) == 2
    assert reason in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as users have them: weights, tokenizer, chat template."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model(MODEL).save_pretrained(folder)
    words = {"[UNK]": 0, "user": 1, "assistant": 2, "what": 3, "is": 4, "this": 5}
    words |= {"<|VS|>": 263, "<|IMAGE|>": 260, "<|VE|>": 264}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.add_special_tokens({"additional_special_tokens": ["<|VS|>", "<|IMAGE|>", "<|VE|>"]})
    fast.save_pretrained(folder)
    return folder, fast


def test_a_checkpoints_tokenizer_and_chat_template_make_the_prompt(checkpoint):
    folder, fast = checkpoint
    source, markers = f"hf:{folder}", markers_of(halves(MODEL)[1])
    plain = encode_text(source, markers, ["image"], "what is this")
    assert plain == (257, 263, 260, 264, 3, 4, 5)
    fast.chat_template = (
        "{% for message in messages %}user {% for part in message.content %}"
        "{% if part.type == 'image' %}<|VS|><|IMAGE|><|VE|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfor %} assistant"
    )
    fast.save_pretrained(folder)
    encode_text.__globals__["_tokenizer"].cache_clear()
    chat = encode_text(source, markers, ["image"], "what is this")
    assert chat == (1, 263, 260, 264, 3, 4, 5, 2)
    assert decode_text(source, [3, 4]) == "what is"
    stream = TextStream(source)  # token by token, as they come
    assert "".join([*map(stream.add, [3, 4, 5]), stream.rest()]) == "what is this"
    assert decode_text(MODEL, [72, 105, 300]) == "Hi<300>"


def test_a_checkpoint_is_served_and_asked(checkpoint, files, capsys):
    source = f"hf:{checkpoint[0]}"
    with serving(Node(source, language=load_language(source))) as node:
        call = ["edge", "--server", node, "--model", source, "--max-new-tokens", "3"]
        assert main([*call, "--image", str(files / "flower.png"), "--prompt", "what is this"]) == 0
    assert "3 tokens" in capsys.readouterr().err
