"""The paper's three strategies, executed over real sockets: All Edge, All Remote, Hybrid Edge.

all-edge     raw items stay on the edge device, which encodes and answers
all-remote   raw items cross the link; the server encodes and answers
hybrid       edge devices encode; features cross the link; the server answers
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Item, Part, Request
from mllm_sched.pipeline.wire import pack

STRATEGIES = ("all-edge", "all-remote", "hybrid")
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """Seconds and bytes of a request, and the tokens of its answer."""

    strategy: str
    transmission_s: float  # the rest of the total: the link, packing, copying and checking
    encode_s: float  # of the device that encoded longest
    llm_s: float
    wait_s: float  # for other requests, on any node
    total_s: float  # from asking to the last token
    up_bytes: int  # over the link, gRPC's own included
    down_bytes: int
    tokens: tuple[int, ...]


def run(
    strategy: str,
    request: Request,
    link: Link,
    edges: Sequence[str],
    *,
    cut: str = "projector",
    wire: str = "float16",
    deadline_s: float = DEADLINE_S,
) -> Outcome:
    """Execute one request.

    Parameters
    ----------
    link
        Open, to the server; All Remote needs a server that holds encoders too.
    edges
        Addresses of the edge devices. All Edge uses the first, which must hold the LLM; hybrid
        spreads the items over all, and each encodes its share one after another.
    cut, wire
        Of the features, in hybrid.
    deadline_s
        For each step.

    Raises ValueError for a strategy that cannot run, else as ``EdgeClient.ask``.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}")
    if not edges and strategy != "all-remote":
        raise ValueError(f"{strategy} needs the address of an edge device")
    address = edges[0] if strategy == "all-edge" else link.address
    with EdgeClient(address) as client:
        model = client.describe(deadline_s).model
        before, begun_s = link.passed(), time.perf_counter()
        parts, encoded = None, pb.Times()
        if strategy == "hybrid":
            parts, encoded = _encode(request, model, edges, cut, deadline_s)
        data = pack(request, model, parts, wire)
        answer = client.ask(data, request.id, deadline_s)
        total_s, after = time.perf_counter() - begun_s, link.passed()
    encode_s = encoded.encode_s + answer.times.encode_s
    wait_s = encoded.wait_s + answer.times.wait_s
    llm_s = answer.times.llm_s
    return Outcome(
        strategy,
        total_s - encode_s - llm_s - wait_s,
        encode_s,
        llm_s,
        wait_s,
        total_s,
        after.up_bytes - before.up_bytes,
        after.down_bytes - before.down_bytes,
        answer.tokens,
    )


def spread(items: Sequence[Item], devices: int) -> list[list[int]]:
    """Indices of the items for each device: the largest first, to the one with the fewest bytes.

    Examples
    --------
    >>> import numpy as np
    >>> items = [Item("audio", np.zeros(size, np.int16)) for size in (10, 30, 20)]
    >>> spread(items, 2)
    [[1], [0, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(devices)]
    held = [0] * devices
    for index in sorted(range(len(items)), key=lambda index: -items[index].bytes):
        device = held.index(min(held))
        shares[device].append(index)
        held[device] += items[index].bytes
    return [sorted(share) for share in shares]


def _encode(
    request: Request, model: str, edges: Sequence[str], cut: str, deadline_s: float
) -> tuple[list[Part], pb.Times]:
    """Features of all items in order, and the times of the device that was busy longest."""
    shares = [share for share in spread(request.items, len(edges)) if share]

    def one(edge: str, share: list[int]) -> tuple[tuple[Part, ...], pb.Times]:
        items = [request.items[index] for index in share]
        with EdgeClient(edge) as client:
            return client.encode(replace(request, items=items), model, deadline_s, cut)

    with ThreadPoolExecutor(max(1, len(shares))) as pool:
        results = list(pool.map(one, edges, shares))
    parts = {
        index: part
        for share, (made, _) in zip(shares, results, strict=True)
        for index, part in zip(share, made, strict=True)
    }
    longest = max(
        (times for _, times in results),
        key=lambda times: times.encode_s + times.wait_s,
        default=pb.Times(),
    )
    return [parts[index] for index in sorted(parts)], longest
