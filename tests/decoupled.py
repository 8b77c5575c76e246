"""Inputs, halves and reference answers that several tests share."""

import asyncio
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from mllm_sched.pipeline.checkpoints import load_model, small_identity
from mllm_sched.pipeline.llm_server import Node
from mllm_sched.pipeline.requests import Item, Request, prompt_ids
from mllm_sched.pipeline.service import listening
from mllm_sched.pipeline.split import markers_of, split
from mllm_sched.pipeline.split import monolithic as reference
from mllm_sched.pipeline.wire import pack

MODALITIES = {
    "small-llava": ("image",),
    "small-voxtral": ("audio",),
    "small-qwen2.5-vl": ("image", "video"),
    "small-qwen2.5-omni": ("image", "audio", "video"),
}
OMNI = "small-qwen2.5-omni"
NEW_TOKENS = 12


def item(modality, seed=0):
    rng = np.random.default_rng(seed)
    if modality == "audio":
        return Item("audio", rng.integers(-9000, 9000, 16000).astype(np.int16))
    shape = (60, 90, 3) if modality == "image" else (5, 60, 90, 3)
    rate = 2.0 if modality == "video" else 1.0
    return Item(modality, rng.integers(0, 256, shape, dtype=np.uint8), rate)


@lru_cache(maxsize=8)
def whole(name):
    torch.set_num_threads(1)
    return load_model(name)


@lru_cache(maxsize=8)
def halves(name):
    """Both halves, with the identity that nodes give to a small model."""
    return split(whole(name), small_identity(name, 0))


def request(name, modalities=None, text=b"What is this?", seed=0):
    modalities = modalities or MODALITIES[name]
    prompt = prompt_ids(markers_of(halves(name)[1]), modalities, text)
    return Request(prompt, tuple(item(kind, seed) for kind in modalities), NEW_TOKENS)


def again(asked):
    """The same request under another id."""
    return replace(asked, id=Request([0]).id)


def parts_of(name, asked, cut="projector"):
    return tuple(halves(name)[0].encode(each, cut) for each in asked.items)


def message(name, asked=None, parts=None, wire="float32", **options):
    asked = asked or request(name)
    parts = parts_of(name, asked) if parts is None else parts
    return asked, pack(asked, halves(name)[0].identity, parts, wire, **options)


def monolithic(name, asked):
    """Logits and greedy tokens of the model that was never split."""
    return reference(whole(name), asked)


def node_here(name=OMNI, *, encoders=False, language=True, **settings):
    """A node of a small model in a thread of this process, which no model is loaded for."""
    held = [
        half if wanted else None
        for half, wanted in zip(halves(name), (encoders, language), strict=True)
    ]
    return serving(Node(name, *held, **settings))


@contextmanager
def serving(service):
    """A service behind a real socket, in a thread of this process. Yields its address."""
    bound, ended = Future(), Future()

    async def main():
        async with listening(service, "127.0.0.1", 0) as port:
            bound.set_result(port)
            await asyncio.wrap_future(ended)

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, main())
        wait([bound, served], return_when=FIRST_COMPLETED)
        try:
            if served.done():
                served.result()  # raises what kept it from listening
            yield f"127.0.0.1:{bound.result()}"
        finally:
            ended.set_result(None)
            served.result()
