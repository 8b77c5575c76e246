"""A node as a process: started, announced, and ended with what it had begun."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

import torch

from mllm_sched.endings import end_with
from mllm_sched.pipeline.checkpoints import load_encoders, load_language
from mllm_sched.pipeline.limits import Limits, Slowdown
from mllm_sched.pipeline.node import Node
from mllm_sched.pipeline.options import add_options, check_options, security_of
from mllm_sched.pipeline.security import check_host
from mllm_sched.pipeline.service import serve


def run_node(
    options: argparse.Namespace, *, encoders: Sequence[str] | None = None, language: bool = True
) -> None:
    """Load the halves and serve them.

    Parameters
    ----------
    encoders
        Modalities to hold encoders for, all if empty; None for no encoders.
    language
        Whether to hold the LLM.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    check_options(options)
    security = security_of(options)
    check_host(options.host, security, is_open=options.open)
    torch.set_num_threads(options.threads)
    what = {"seed": options.seed, "dtype": options.dtype}
    edge = None if encoders is None else load_encoders(options.model, encoders, **what)
    llm = load_language(options.model, **what) if language else None
    for half, held in (("encoders", edge), ("LLM", llm)):
        if held:
            print(f"{half}: {held.memory_bytes / 1e6:.1f} MB of weights", file=sys.stderr)

    async def main() -> None:
        node = Node(
            options.model,
            edge,
            llm,
            limits=Limits(options.limit, options.max_bytes, idle_s=options.idle),
            slowdown=Slowdown(options.encoders_slowdown, options.llm_slowdown),
            security=security,
        )
        await serve(node, options.host, options.port)

    asyncio.run(main())


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a node with any halves; what ``mllm-sched serve-llm`` and ``edge`` are made of."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_options(parser)
    parser.add_argument(
        "--encoders", nargs="*", metavar="MODALITY", help="hold these; all if empty"
    )
    parser.add_argument("--no-llm", action="store_true", help="hold no LLM")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process has ended")
    options = parser.parse_args(argv)
    if options.parent:
        end_with(options.parent)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_node(options, encoders=options.encoders, language=not options.no_llm)


if __name__ == "__main__":
    main()
