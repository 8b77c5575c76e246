"""More clients than an LLM server takes, for a minute: who is answered, who is refused, what leaks.

    python benchmarks/pipeline_load.py [--seconds 60] [--clients 16] [--limit 8]

Every client asks one request after another: an image, sound and a video in features. A client that
is refused waits a moment, as a polite one does. Fails if any error but RESOURCE_EXHAUSTED comes, if
an answer differs from that of a lone client, or if the server's memory grows.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil

from mllm_sched.pipeline.checkpoints import load_encoders
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.media import panned_video, photograph, speech_like
from mllm_sched.pipeline.node_errors import NodeBusy, NodeError
from mllm_sched.pipeline.requests import Item, Part, Request, prompt_ids
from mllm_sched.pipeline.service import NodeProcess
from mllm_sched.pipeline.wire import pack

MODEL, PAUSE_S, KINDS = "small-qwen2.5-omni", 0.05, 8
FLAT_MB = 20.0


class Clients:
    """What all clients share: prepared requests, right answers, and what happened."""

    def __init__(self, address: str) -> None:
        self.address = address
        encoders = load_encoders(MODEL)
        with EdgeClient(address) as client:
            card = client.describe()
        prompt = prompt_ids(card.markers, ["image", "audio", "video"], b"What is this?")
        self.model = card.model
        self.asked: list[tuple[Request, Sequence[Part]]] = []
        for kind in range(KINDS):
            request = Request(prompt, inputs(kind), 8)
            self.asked.append((request, [encoders.encode(item) for item in request.items]))
        self.right = [self.ask(kind) for kind in range(KINDS)]
        self.happened: Counter[str] = Counter()
        self.times_s: list[float] = []
        self._lock = threading.Lock()

    def ask(self, kind: int, client: EdgeClient | None = None) -> tuple[int, ...]:
        """Tokens of the answer to one of the requests, under a new id."""
        request, parts = self.asked[kind]
        request = replace(request, id=Request([0]).id)
        data = pack(request, self.model, parts, "float32")
        if client:
            return client.ask(data, request.id, 60.0).tokens
        with EdgeClient(self.address) as alone:
            return alone.ask(data, request.id, 60.0).tokens

    def work(self, number: int, ends_s: float) -> None:
        """Ask until the time is over."""
        with EdgeClient(self.address) as client:
            turn = number
            while time.monotonic() < ends_s:
                turn += 1
                begun_s = time.perf_counter()
                what = self._one(turn % KINDS, client)
                with self._lock:
                    self.happened[what] += 1
                    if what == "answered":
                        self.times_s.append(time.perf_counter() - begun_s)
                if what != "answered":
                    time.sleep(PAUSE_S)

    def _one(self, kind: int, client: EdgeClient) -> str:
        try:
            tokens = self.ask(kind, client)
        except NodeBusy:
            return "refused: RESOURCE_EXHAUSTED"
        except NodeError as error:
            return f"error: {error}"
        return "answered" if tokens == self.right[kind] else "answered wrongly"


def inputs(kind: int) -> tuple[Item, ...]:
    """An image, a second of sound and a few frames, different for each kind."""
    image = np.roll(photograph("china", 60, 90), 7 * kind, axis=1)
    video = panned_video("flower", 2.0, 2.0, 60, 90, seed=kind)
    return (
        Item("image", image),
        Item("audio", speech_like(1.0, seed=kind)),
        Item("video", video, 2.0),
    )


def watched(process: psutil.Process, clients: Clients, count: int, seconds: float) -> pd.DataFrame:
    """Memory and open files of the server, once a second, while the clients ask."""
    ends_s = time.monotonic() + seconds
    threads = [
        threading.Thread(target=clients.work, args=(number, ends_s)) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    rows = []
    while time.monotonic() < ends_s:
        rows.append((process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()))
        time.sleep(1.0)
    for thread in threads:
        thread.join()
    return pd.DataFrame(rows, columns=["rss_mb", "files", "threads"])


def main() -> int:
    """Print what happened; 1 if it should not have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--limit", type=int, default=8)
    options = parser.parse_args()
    limit = ("--limit", str(options.limit))
    with NodeProcess("serve-llm", "--model", MODEL, *limit) as server:
        clients = Clients(server.address)
        process = psutil.Process(server.pid)
        watched(process, clients, options.clients, options.seconds / 6)  # until it has its buffers
        clients.happened.clear()
        clients.times_s.clear()
        seen = watched(process, clients, options.clients, options.seconds)
        after = [clients.ask(kind) for kind in range(KINDS)]
    third = max(1, len(seen) // 3)
    growth_mb = seen["rss_mb"].tail(third).median() - seen["rss_mb"].head(third).median()
    print(f"{options.clients} clients, {options.seconds:g} s, limit {options.limit} requests")
    for what, count in clients.happened.most_common():
        print(f"  {what}: {count}")
    middle, late = np.percentile(clients.times_s, [50, 99])
    print(f"  answered in {middle:.3f} s (median), {late:.3f} s (99th percentile)")
    print(f"  server: memory {growth_mb:+.1f} MB from the first third to the last")
    print(f"  server: files {seen['files'].max()} at most, threads {seen['threads'].max()} at most")
    print(f"  a lone client afterwards gets the same answers: {after == clients.right}")
    allowed = {"answered", "refused: RESOURCE_EXHAUSTED"}
    good = set(clients.happened) <= allowed and after == clients.right and growth_mb < FLAT_MB
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
