"""The decoupled model, really run: whether it is the same model, and what the strategies take.

Real processes and sockets, over a shaped link; only device speeds are imitated. All work is done on
this machine. An edge device is a process that takes a given number of times as long, by sleeping.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor

from mllm_sched.experiments.break_even import shapes_of
from mllm_sched.experiments.strategy_costs import CUTS
from mllm_sched.pipeline import llm_server, media
from mllm_sched.pipeline.checkpoints import load_model
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.node_errors import DeadlineMissed, NodeUnreachable
from mllm_sched.pipeline.options import add_options
from mllm_sched.pipeline.requests import WIRE_TYPES, Item, Part, Request, prompt_ids
from mllm_sched.pipeline.service import READY
from mllm_sched.pipeline.small_models import small_config
from mllm_sched.pipeline.split import EncoderHalf, monolithic, split
from mllm_sched.pipeline.strategies import Outcome, run
from mllm_sched.pipeline.wire import pack, wire_bytes

QUESTION = b"What is this?"
DEADLINE_S = 60.0

# What a node imports takes longer than all else before it serves; it is imported once, for all.
IMPORTED = [
    __name__,
    *(
        f"transformers.models.{name}.modeling_{name}"
        for name in ("llava", "clip", "llama", "voxtral", "qwen2_5_vl", "qwen2_5_omni")
    ),
]
START_S = 120.0  # at most, until a node listens


@dataclass(frozen=True)
class NodeSetup:
    """A node: its options as on the command line, and which halves of the model it holds."""

    options: Sequence[str]
    encoders: Sequence[str] | None = None  # modalities, all if empty; None for no encoders
    language: bool = True


@contextmanager
def _running(nodes: Sequence[NodeSetup]) -> Iterator[list[str]]:
    """Addresses of nodes, each a fork of a process that has imported what they need."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with ExitStack() as ended:
        folder = Path(ended.enter_context(TemporaryDirectory()))
        logs = [folder / str(number) for number in range(len(nodes))]
        for log in logs:
            log.touch()
        processes = []
        for node, log in zip(nodes, logs, strict=True):
            process = context.Process(target=_node, args=(node, str(log)))
            process.start()
            ended.callback(process.join)
            ended.callback(process.terminate)
            processes.append(process)
        yield [_address(process, log) for process, log in zip(processes, logs, strict=True)]


def _node(node: NodeSetup, log: str) -> None:
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    parser = ArgumentParser()
    add_options(parser)
    options = parser.parse_args([*node.options, "--port", "0", "--parent", str(os.getppid())])
    llm_server.run_node(options, encoders=node.encoders, language=node.language)


def _address(process: BaseProcess, log: Path) -> str:
    """Where a node listens, once it does; RuntimeError with its last words if it never does."""
    end_s = time.monotonic() + START_S
    while process.is_alive() and time.monotonic() < end_s:
        lines = log.read_text().splitlines()
        for line in lines:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
        time.sleep(0.02)
    raise RuntimeError(f"a node did not start: {' '.join(log.read_text().splitlines()[-1:])}")


# -- Is it the same model?

# Every supported architecture with what it takes; the last takes all at once.
MODELS: Mapping[str, Sequence[Sequence[str]]] = {
    "small-llava": (("image",),),
    "small-voxtral": (("audio",),),
    "small-qwen2.5-vl": (("image",), ("video",)),
    "small-qwen2.5-omni": (("image",), ("audio",), ("video",), ("image", "audio", "video")),
}
TOKENS = 12
# Features that were tampered with: the comparison has to notice them.
TAMPERED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeroed": torch.zeros_like,
    "rows reversed": lambda features: features.flip(0),
}


@contextmanager
def language_servers() -> Iterator[dict[str, str]]:
    """Addresses of an LLM server for each of ``MODELS``, without encoders."""
    with _running([NodeSetup(("--model", name)) for name in MODELS]) as addresses:
        yield dict(zip(MODELS, addresses, strict=True))


def correctness(servers: Mapping[str, str]) -> pd.DataFrame:
    """Logits and greedy tokens of decoupled runs beside those of the whole model.

    ``servers`` are addresses by model, of ``language_servers``. Encoders run in this process.

    Columns ``model``, ``items``, ``cut``, ``features`` (the wire type, or how features were
    tampered with), ``bitwise`` (whether all logits of the prompt are equal), ``max_delta``
    (their largest difference), ``tokens_equal`` (share of the answer's tokens).
    """
    available = {  # small enough for tiny models
        "image": Item("image", media.photograph("china", 60, 90)),
        "audio": Item("audio", media.speech_like(1.0)),
        "video": Item("video", media.panned_video("flower", 2.0, 2.0, 60, 90), 2.0),
    }
    rows = []
    for name, address in servers.items():
        whole = load_model(name)
        encoders, _ = split(whole, name)
        with EdgeClient(address) as client:
            card = client.describe()
            for modalities in MODELS[name]:
                items = tuple(available[modality] for modality in modalities)
                prompt = prompt_ids(card.markers, modalities, QUESTION)
                logits, tokens = monolithic(whole, Request(prompt, items, TOKENS))
                for cut, features, wire, parts in _sent(encoders, items):
                    request = Request(prompt, items, TOKENS)
                    data = pack(request, card.model, parts, wire, logits=True)
                    answer = client.ask(data, request.id, DEADLINE_S)
                    rows.append(
                        (
                            *(name, " + ".join(modalities), cut, features),
                            torch.equal(answer.logits[0], logits[0]),
                            float((answer.logits[0] - logits[0]).abs().max()),
                            _equal_share(answer.tokens, tokens),
                        )
                    )
    columns = ["model", "items", "cut", "features", "bitwise", "max_delta", "tokens_equal"]
    return pd.DataFrame(rows, columns=columns)


def _sent(
    encoders: EncoderHalf, items: Sequence[Item]
) -> Iterator[tuple[str, str, str, Sequence[Part]]]:
    """Cut, label of the features, their type on the wire, and the features."""
    for cut in CUTS:
        parts = [encoders.encode(item, cut) for item in items]
        for wire in WIRE_TYPES:
            yield cut, wire, wire, parts
        for how, tamper in TAMPERED.items():
            wrong = [replace(part, features=tamper(part.features)) for part in parts]
            yield cut, how, "float32", wrong


def _equal_share(tokens: Sequence[int], expected: Sequence[int]) -> float:
    return sum(one == other for one, other in zip(tokens, expected, strict=False)) / len(expected)


# -- What do the strategies take?

MODEL = "medium-qwen2.5-omni"
# Name, strategy, edge devices used, wire type; all are cut behind the projector.
RUNS = (
    ("all-edge", "all-edge", 1, "float32"),
    ("all-remote", "all-remote", 1, "float32"),
    ("hybrid, float16", "hybrid", 1, "float16"),
    ("hybrid, int8", "hybrid", 1, "int8"),
    ("hybrid, int8, 2 edges", "hybrid", 2, "int8"),
)


@dataclass(frozen=True)
class Bench:
    """Addresses of running nodes: a server, and edges of which the first holds the LLM too."""

    server: str
    edges: Sequence[str]
    model: str
    markers: Mapping[str, int] = field(repr=False)

    def request(self, items: Sequence[Item], new_tokens: int) -> Request:
        """A question about some items."""
        prompt = prompt_ids(self.markers, [item.modality for item in items], QUESTION)
        return Request(prompt, tuple(items), new_tokens)


@contextmanager
def bench(encoders_slowdown: float, llm_slowdown: float) -> Iterator[Bench]:
    """Start a server and two edge devices, which are slower; they end with the block."""
    model = ("--model", MODEL)
    slower = (*model, "--encoders-slowdown", str(encoders_slowdown))
    nodes = [
        NodeSetup(model, ()),
        NodeSetup((*slower, "--llm-slowdown", str(llm_slowdown)), ()),
        NodeSetup(slower, (), language=False),
    ]
    with _running(nodes) as (server, *edges):
        with EdgeClient(server) as client:
            card = client.describe()
        yield Bench(server, edges, card.model, card.markers)


def run_strategies(
    on: Bench,
    items: Sequence[Item],
    new_tokens: int,
    repeats: int = 1,
    *,
    mbit_s: float,
    delay_s: float = 0.0,
) -> pd.DataFrame:
    """Every strategy over one link, after one request to each node that warms it up.

    One row a run of ``RUNS``, medians over ``repeats``: ``strategy``, times in milliseconds,
    ``up_bytes``, ``down_bytes``, ``spread_ms`` (from the quickest to the slowest repeat in total),
    ``tokens_equal`` (the share of tokens equal to All Edge's), and ``payload_bytes`` (the items or
    features in what is sent).
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name, *_ in RUNS}
    with Link(on.server, up_mbit_s=mbit_s, down_mbit_s=mbit_s, delay_s=delay_s) as link:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: _warm_up(on, items, node), [on.server, *on.edges]))
        for _ in range(repeats):
            for name, strategy, edges, wire in RUNS:
                _wait_until_idle(link)
                request = on.request(items, new_tokens)
                outcomes[name].append(run(strategy, request, link, on.edges[:edges], wire=wire))
    answer = outcomes["all-edge"][0].tokens
    rows = []
    for name, strategy, _, wire in RUNS:
        repeated = pd.DataFrame([asdict(outcome) for outcome in outcomes[name]])
        middle = repeated.drop(columns=["strategy", "tokens", "wait_s"]).median()
        times_s = middle.filter(like="_s")
        rows.append(
            {
                "strategy": name,
                **(1000 * times_s).rename(lambda stage: f"{stage[:-2]}_ms"),
                **middle.drop(times_s.index),
                "spread_ms": 1000 * (repeated["total_s"].max() - repeated["total_s"].min()),
                "tokens_equal": _equal_share(outcomes[name][0].tokens, answer),
                "payload_bytes": _payload_bytes(items, strategy, wire),
            }
        )
    return pd.DataFrame(rows)


def _payload_bytes(items: Sequence[Item], strategy: str, wire: str) -> int:
    """Of raw items, or of their features in the model that runs; counted, not measured."""
    if strategy == "hybrid":
        shapes = (shapes_of(small_config(MODEL), item)["projector"] for item in items)
        return sum(wire_bytes(rows, width, wire) for rows, width in shapes)
    return sum(item.bytes for item in items) if strategy == "all-remote" else 0


def _warm_up(on: Bench, items: Sequence[Item], address: str) -> None:
    """The first request of a process pays for its buffers."""
    with EdgeClient(address) as client:
        client.encode(on.request(items, 1), on.model, DEADLINE_S)


def _wait_until_idle(link: Link) -> None:
    """Let the last bytes of the connection before cross the link, which are not of the next run."""
    passed = None
    while passed != link.passed():
        passed = link.passed()
        time.sleep(0.05)


# -- What does a missed deadline leave on the link?

MISSED_SHARE = 0.25  # deadline as a share of the time that the upload needs
SAMPLES = 5  # of a short request on an idle link


def residual_queue(on: Bench, rates_mbit_s: Sequence[float]) -> pd.DataFrame:
    """How long a short request waits right behind one that missed its deadline on the link.

    Bytes of the missed request that the kernel and the link hold already still drain.

    Columns ``mbit_s``, ``deadline_s``, ``idle_s`` (the short request alone, median), ``same_s`` and
    ``new_s`` (right after the miss, over the same connection and over another one), and
    ``residual_bytes`` (what the wait on the same connection amounts to at the link's rate).
    """
    rows = [_residual(on, mbit_s) for mbit_s in rates_mbit_s]
    columns = ["mbit_s", "deadline_s", "idle_s", "same_s", "new_s"]
    table = pd.DataFrame(rows, columns=columns)
    waited_s = (table["same_s"] - table["idle_s"]).clip(lower=0)
    return table.assign(residual_bytes=waited_s * table["mbit_s"] * 1e6 / 8)


def _residual(on: Bench, mbit_s: float) -> tuple[float, ...]:
    picture = Item("image", media.photograph("china", 720, 1280))
    deadline_s = MISSED_SHARE * 8 * picture.bytes / (mbit_s * 1e6)
    waits: list[float] = []
    idle: list[float] = []
    for same in (True, False):
        with (
            Link(on.server, up_mbit_s=mbit_s, down_mbit_s=mbit_s) as link,
            EdgeClient(link.address) as client,
            EdgeClient(link.address) as other,
        ):
            for each in (client, other):
                _short_s(on, each)  # connects
            idle += [_short_s(on, client) for _ in range(SAMPLES)]
            long = on.request([picture], 1)
            try:
                client.ask(pack(long, on.model), long.id, deadline_s)
            except (DeadlineMissed, NodeUnreachable):  # the node may notice before the caller
                waits.append(_short_s(on, client if same else other))
            else:
                raise RuntimeError(f"{mbit_s} Mbit/s: the deadline of {deadline_s:.2f} s was met")
    return (mbit_s, deadline_s, median(idle), *waits)


def _short_s(on: Bench, client: EdgeClient) -> float:
    request = on.request((), 1)
    return client.ask(pack(request, on.model), request.id, DEADLINE_S).total_s
