"""The commands of the decoupled pipeline: ``serve-llm`` and ``edge``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from mllm_sched.pipeline.requests import WIRE_TYPES
from mllm_sched.tasks import MODALITIES


def add_commands(commands: Any) -> None:
    """Add both to the parser of ``mllm-sched``."""
    from mllm_sched.pipeline.options import add_options

    server = commands.add_parser("serve-llm", help="serve the LLM of a decoupled model")
    add_options(server)
    server.add_argument(
        "--with-encoders", action="store_true", help="hold them too, for raw requests (All Remote)"
    )
    server.set_defaults(command=_serve)

    edge = commands.add_parser("edge", help="encode here, and ask the LLM server; or --listen")
    add = edge.add_argument
    add("--server", metavar="HOST:PORT", help="of the LLM")
    for modality in MODALITIES:
        add(f"--{modality}", action="append", default=[], type=Path, metavar="FILE")
    add("--fps", type=float, default=2.0, help="frames to take of a second (default %(default)s)")
    add("--prompt", default="", help="the question")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="(default %(default)s)")
    add("--cut", choices=("encoder", "projector"), default="projector", help="(%(default)s)")
    add("--wire", choices=WIRE_TYPES, default="float16", help="features' type (%(default)s)")
    add("--deadline", type=float, default=60.0, metavar="SECONDS", help="(default %(default)s)")
    add("--listen", action="store_true", help="serve the encoders to others instead")
    add("--modalities", nargs="*", default=[], metavar="NAME", help="hold only these encoders")
    add_options(edge, port=50052)
    edge.set_defaults(command=_edge)


def _serve(options: argparse.Namespace) -> None:
    from mllm_sched.pipeline.llm_server import run_node

    run_node(options, encoders=() if options.with_encoders else None)


def _edge(options: argparse.Namespace) -> None:
    from mllm_sched.pipeline.llm_server import run_node

    if options.listen:
        run_node(options, encoders=options.modalities, language=False)
    else:
        _ask(options)


def _ask(options: argparse.Namespace) -> None:
    """Encode the files here, send their features, print the answer as it comes, then the times."""
    import torch

    from mllm_sched.pipeline.checkpoints import load_encoders
    from mllm_sched.pipeline.edge_client import EdgeClient
    from mllm_sched.pipeline.options import security_of
    from mllm_sched.pipeline.requests import Request, TextStream, encode_text, markers_of
    from mllm_sched.pipeline.wire import pack

    if not options.server:
        raise ValueError("--server HOST:PORT is missing: where is the LLM? (or give --listen)")
    torch.set_num_threads(options.threads)
    items = _read_items(options)
    modalities = [item.modality for item in items]
    held = options.modalities or sorted(set(modalities))
    encoders = load_encoders(options.model, held, options.seed, options.dtype)
    prompt = encode_text(options.model, markers_of(encoders), modalities, options.prompt)
    request = Request(prompt, items, options.max_new_tokens)
    begun_s = time.perf_counter()
    parts = [encoders.encode(item, options.cut) for item in items]
    encode_s = time.perf_counter() - begun_s
    data = pack(request, encoders.identity, parts, options.wire)
    text = TextStream(options.model)
    with EdgeClient(options.server, security_of(options)) as client:
        for event, tries in client.events(data, request.id, options.deadline):
            if event.WhichOneof("content") == "token":
                print(text.add(event.token.token), end="", flush=True)
                continue
            total_s, times = time.perf_counter() - begun_s, event.finished.times
            sent_s = total_s - encode_s - times.llm_s - times.wait_s
            print(text.rest())
            print(
                f"{event.finished.tokens} tokens in {total_s:.2f} s: encoding {encode_s:.2f}, "
                f"transmission {sent_s:.2f}, LLM {times.llm_s:.2f}, waiting {times.wait_s:.2f}; "
                f"{len(data)} bytes sent for {request.bytes} of raw input; {tries} tries",
                file=sys.stderr,
            )


def _read_items(options: argparse.Namespace) -> tuple[Any, ...]:
    """The files as raw items, in the order image, audio, video."""
    from mllm_sched.pipeline.media import read_audio, read_image, read_video

    items = [read_image(path) for path in options.image]
    items += [read_audio(path) for path in options.audio]
    items += [read_video(path, options.fps) for path in options.video]
    if not items and not options.prompt:
        raise ValueError("nothing to ask: give --prompt, --image, --audio or --video")
    return tuple(items)
