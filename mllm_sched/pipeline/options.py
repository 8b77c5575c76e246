"""Options and limits of programs that run a node or ask one; nothing heavy is imported for them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllm_sched.pipeline.security import Security


DTYPE_NAMES = ("float32", "bfloat16", "float16")
REQUESTS = 8
MESSAGE_BYTES = 64 << 20


def add_options(parser: argparse.ArgumentParser, port: int = 50051) -> None:
    """Options of every node."""
    add = parser.add_argument
    add("--port", type=int, default=port, help="0: a free one (default %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--open", action="store_true", help="listen beyond this machine in the clear")
    add("--model", default="small-llava", help="a small one, or hf:PATH (default %(default)s)")
    add("--seed", type=int, default=0, help="of a small model's weights")
    add("--dtype", choices=DTYPE_NAMES, default="float32", help="of the weights")
    add("--limit", type=int, default=REQUESTS, help="requests at a time (%(default)s)")
    add("--max-bytes", type=int, default=MESSAGE_BYTES, help="of a message (%(default)s)")
    add("--idle", type=float, default=30.0, metavar="S", help="an upload may pause (%(default)s)")
    add("--threads", type=int, default=1, help="of PyTorch (default %(default)s)")
    for name in ("encoders", "llm"):
        add(f"--{name}-slowdown", type=float, default=1.0, metavar="N", help="imitate a slower one")
    add_security(parser)


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that a node cannot work with; ValueError names the option."""
    least = {
        **{"limit": 1, "max_bytes": 1024, "threads": 1, "idle": 0.1},
        **{"encoders_slowdown": 1, "llm_slowdown": 1},
    }
    for name, bound in least.items():
        if not bound <= (value := getattr(options, name)) < float("inf"):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value:g}: expected {bound} or more")


def add_security(parser: argparse.ArgumentParser) -> None:
    """Options that say who may ask, the same on both sides."""
    add = parser.add_argument
    add("--token-file", type=Path, metavar="FILE", help="holds the token both sides share")
    add("--certificate", type=Path, metavar="FILE.pem", help="of this side, for mutual TLS")
    add("--key", type=Path, metavar="FILE.pem", help="of this side's certificate")
    add("--authority", type=Path, metavar="FILE.pem", help="signed the other side's certificate")


def security_of(options: argparse.Namespace) -> Security:
    """Secrets as the options name them."""
    from mllm_sched.pipeline.security import Security  # which needs gRPC

    file = options.token_file
    token = file.read_text().strip() if file else None
    return Security(token, options.certificate, options.key, options.authority)


@dataclass(frozen=True)
class Limits:
    """What a node takes upon itself.

    Attributes
    ----------
    requests
        At a time; one more is refused with RESOURCE_EXHAUSTED.
    bytes
        Of one message.
    new_tokens
        Of one answer.
    idle_s
        That an upload may pause in all.
    answer_s
        For a request without a deadline, or with a later one.
    """

    requests: int = REQUESTS
    bytes: int = MESSAGE_BYTES
    new_tokens: int = 1024
    idle_s: float = 30.0
    answer_s: float = 600.0


@dataclass(frozen=True)
class Slowdown:
    """How much slower than this machine the imitated device is; 1 for this machine itself."""

    encoders: float = 1.0
    llm: float = 1.0
