"""What gRPC, the wire format and its checks cost beside a bare socket, over the same slow link.

    python benchmarks/transport_overhead.py [--mbit-s 10] [--repeats 5]

4.7 MB go up, as raw pixels of one image, and an answer comes back. Bare: a socket that takes the
bytes and answers with one token's worth. Ours: a real node; its time for encoding and for the LLM
is taken off. Both run in turn through links of their own. The link's own time is that of the bytes
of the image at its rate.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.requests import Item, Request, prompt_ids
from mllm_sched.pipeline.service import NodeProcess
from mllm_sched.pipeline.strategies import run

MODEL = "small-llava"
NODE = ("serve-llm", "--with-encoders", "--model", MODEL)
# 4718592 bytes, as many as LLaVA-1.5's features of one image take in float16.
IMAGE = np.random.default_rng(0).integers(0, 256, (1024, 1536, 3), dtype=np.uint8)
LIMIT = 1.10

BARE = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(*server.getsockname(), flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            left = int(sys.argv[1])
            while left > 0: left -= len(connection.recv(65536))
            connection.sendall(b"done")
"""


def bare_s(address: str) -> float:
    """Seconds from connecting to the answer of a socket that takes all bytes."""
    host, port = address.rsplit(":", 1)
    begun_s = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(IMAGE.tobytes())
        assert connection.recv(4) == b"done"
    return time.perf_counter() - begun_s


@contextmanager
def bare_server() -> Iterator[str]:
    """Address of the bare socket, in a process of its own as the node is."""
    command = [sys.executable, "-c", BARE, str(IMAGE.nbytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield ":".join(process.stdout.readline().split())
        finally:
            process.kill()


def ours_s(link: Link) -> float:
    """Seconds of an All Remote request that are neither encoding nor the LLM."""
    with EdgeClient(link.address) as client:
        prompt = prompt_ids(client.describe().markers, ["image"], b"?")
    outcome = run("all-remote", Request(prompt, (Item("image", IMAGE),), 1), link, [])
    return outcome.transmission_s


def measured(mbit_s: float, repeats: int) -> Iterator[tuple[str, float]]:
    """Rows of transport and seconds."""
    with bare_server() as bare, NodeProcess(*NODE) as node:
        for _ in range(repeats):
            with Link(bare, up_mbit_s=mbit_s, down_mbit_s=mbit_s) as link:
                yield "bare socket", bare_s(link.address)
            with Link(node.address, up_mbit_s=mbit_s, down_mbit_s=mbit_s) as link:
                yield "ours", ours_s(link)


def main() -> int:
    """Print the table; 1 if the overhead is beyond a tenth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit-s", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ideal_s = 8 * IMAGE.nbytes / (options.mbit_s * 1e6)
    rows = measured(options.mbit_s, options.repeats)
    table = pd.DataFrame(rows, columns=["transport", "seconds"])
    table = table.groupby("transport", sort=False)["seconds"].agg(["median", "max"])
    table["over the link's own time"] = table["median"] / ideal_s
    print(
        f"{IMAGE.nbytes} bytes at {options.mbit_s:g} Mbit/s: the link itself takes {ideal_s:.3f} s"
    )
    print(table.round(3).to_string())
    ratio = table.loc["ours", "median"] / table.loc["bare socket", "median"]
    print(f"ours over a bare socket: {ratio:.3f}")
    over = table.loc["ours", "over the link's own time"]
    print(f"beyond the link's own time: {over - 1:.1%}, at most {LIMIT - 1:.0%}")
    return int(over > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
