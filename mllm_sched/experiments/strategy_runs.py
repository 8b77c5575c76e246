"""The decoupled model, really run: whether it is the same model, and what the strategies take.

Real processes and sockets, over a shaped link; only device speeds are imitated. All work is done on
this machine. An edge device is a process that takes a given number of times as long, by sleeping.
The paper's ratios are the default: its edge encodes four times as slowly as its server, and its LLM
5500/1500 times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median

import pandas as pd
import psutil
import torch
from torch import Tensor

from mllm_sched.experiments.break_even import shapes_of
from mllm_sched.experiments.strategy_costs import in_ms
from mllm_sched.pipeline import media
from mllm_sched.pipeline.checkpoints import load_model
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.node_errors import DeadlineMissed, NodeUnreachable
from mllm_sched.pipeline.processes import NodeProcess
from mllm_sched.pipeline.prompts import prompt_ids
from mllm_sched.pipeline.requests import WIRE_TYPES, Item, Part, Request
from mllm_sched.pipeline.small_models import build, small_config
from mllm_sched.pipeline.split import EncoderHalf, monolithic, split
from mllm_sched.pipeline.strategies import Outcome, run
from mllm_sched.pipeline.wire import pack, wire_bytes

# Every supported architecture with what it takes; the last takes all at once.
MODELS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "small-llava": (("image",),),
    "small-voxtral": (("audio",),),
    "small-qwen2.5-vl": (("image",), ("video",)),
    "small-qwen2.5-omni": (("image",), ("audio",), ("video",), ("image", "audio", "video")),
}
CUTS = ("encoder", "projector")
TOKENS = 12
# Features that were tampered with: the comparison has to notice them.
TAMPERED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeroed": torch.zeros_like,
    "rows reversed": lambda features: features.flip(0),
}


def items_of(modalities: Sequence[str]) -> tuple[Item, ...]:
    """A photograph, a second of sound and four frames, small enough for tiny models."""
    video = media.panned_video("flower", 2.0, 2.0, 60, 90)
    made = {
        "image": Item("image", media.photograph("china", 60, 90)),
        "audio": Item("audio", media.speech_like(1.0)),
        "video": Item("video", video, 2.0),
    }
    return tuple(made[modality] for modality in modalities)


@contextmanager
def language_servers(models: Sequence[str] = tuple(MODELS)) -> Iterator[dict[str, NodeProcess]]:
    """An LLM server for each model, without encoders; all load at once."""
    nodes = {name: NodeProcess("--model", name) for name in models}
    with ExitStack() as ended:
        for node in nodes.values():
            ended.callback(node.stop)
            node.begin()
        for node in nodes.values():
            node.wait()
        yield nodes


@dataclass(frozen=True)
class _Compared:
    """The whole model's answer to a request, and the connection to the half that is compared."""

    client: EdgeClient
    model: str
    request: Request
    logits: Tensor
    tokens: tuple[int, ...]

    def differences(self, parts: Sequence[Part], wire: str) -> tuple[bool, float, float]:
        """Whether all logits are equal to the last bit, their largest difference, equal tokens."""
        request = replace(self.request, id=Request([0]).id)
        data = pack(request, self.model, parts, wire, logits=True)
        answer = self.client.ask(data, request.id, DEADLINE_S)
        pairs = zip(answer.tokens, self.tokens, strict=False)
        return (
            torch.equal(answer.logits[0], self.logits),
            float((answer.logits[0] - self.logits).abs().max()),
            sum(one == other for one, other in pairs) / len(self.tokens),
        )


def correctness(servers: Mapping[str, NodeProcess]) -> pd.DataFrame:
    """Logits and greedy tokens of decoupled runs beside those of the whole model.

    Parameters
    ----------
    servers
        Of ``language_servers``. Encoders run in this process.

    Returns
    -------
    Columns ``model``, ``items``, ``cut``, ``features`` (the wire type, or how features were
    tampered with), ``bitwise`` (whether all logits of the prompt are equal), ``max_delta``
    (their largest difference), ``tokens_equal`` (share of the answer's tokens).
    """
    rows: list[tuple[object, ...]] = []
    for name, server in servers.items():
        whole = load_model(name)
        encoders, _ = split(whole)
        with EdgeClient(server.address) as client:
            card = client.describe()
            for modalities in MODELS[name]:
                prompt = prompt_ids(card.markers, modalities, b"What is this?")
                request = Request(prompt, items_of(modalities), TOKENS)
                logits, tokens = monolithic(whole, request)
                compared = _Compared(client, card.model, request, logits[0], tokens)
                asked = " + ".join(modalities)
                rows += ((name, asked, *row) for row in _compared(compared, encoders))
    columns = ["model", "items", "cut", "features", "bitwise", "max_delta", "tokens_equal"]
    return pd.DataFrame(rows, columns=columns)


def _compared(compared: _Compared, encoders: EncoderHalf) -> Iterator[tuple[object, ...]]:
    for cut in CUTS:
        parts = [encoders.encode(item, cut) for item in compared.request.items]
        for wire in WIRE_TYPES:
            yield cut, wire, *compared.differences(parts, wire)
        for how, tamper in TAMPERED.items():
            wrong = [replace(part, features=tamper(part.features)) for part in parts]
            yield cut, how, *compared.differences(wrong, "float32")


def by_features(table: pd.DataFrame) -> pd.DataFrame:
    """Over all models, items and cuts: equality, the largest difference, equal tokens."""
    rules = {
        "all bitwise equal": ("bitwise", "all"),
        "any bitwise equal": ("bitwise", "any"),
        "largest difference": ("max_delta", "max"),
        "least difference": ("max_delta", "min"),
        "tokens equal, mean": ("tokens_equal", "mean"),
        "tokens equal, least": ("tokens_equal", "min"),
    }
    return table.groupby("features", sort=False).agg(**rules)


def facts(table: pd.DataFrame) -> pd.Series:
    """What holds whatever the machine, of the table of ``correctness``."""
    found = by_features(table)
    return pd.Series(
        {
            "float32: all logits equal to the last bit": found.loc["float32", "all bitwise equal"],
            "float32: all tokens equal": found.loc["float32", "tokens equal, least"] == 1,
            "zeroed features: any logits equal": found.loc["zeroed", "any bitwise equal"],
            "rows reversed: any logits equal": found.loc["rows reversed", "any bitwise equal"],
            "int8, worst comparison: fewer than half of the tokens equal": (
                found.loc["int8", "tokens equal, least"] < 0.5
            ),
        }
    )


def weight_sizes(configs: Mapping[str, object]) -> pd.DataFrame:
    """Weights of both halves of models at full size, in FP16; counted, nothing is loaded.

    Parameters
    ----------
    configs
        Of ``break_even.full_size_configs``.

    Returns
    -------
    Columns ``model``, ``whole_gb``, ``edge_gb``, ``server_gb``. Both halves hold the projectors.
    """
    rows = []
    for name, config in configs.items():
        with torch.device("meta"):
            model = build(config)
        halves = split(model, "counted")
        whole = 2 * sum(weights.numel() for weights in model.parameters())
        rows.append((name, whole / 1e9, *(half.memory_bytes / 2e9 for half in halves)))
    return pd.DataFrame(rows, columns=["model", "whole_gb", "edge_gb", "server_gb"])


MODEL = "medium-qwen2.5-omni"
DEADLINE_S = 60.0
# Name, strategy, edge devices used, cut, wire type.
RUNS = (
    ("all-edge", "all-edge", 1, "projector", "float32"),
    ("all-remote", "all-remote", 1, "projector", "float32"),
    ("hybrid, float16", "hybrid", 1, "projector", "float16"),
    ("hybrid, int8", "hybrid", 1, "projector", "int8"),
    ("hybrid, int8, 2 edges", "hybrid", 2, "projector", "int8"),
)
SAMPLES = 5  # of a short request on an idle link


@dataclass(frozen=True)
class Bench:
    """Running nodes: a server, and edge devices of which the first holds the LLM too."""

    server: NodeProcess
    edges: Sequence[NodeProcess]
    model: str
    markers: dict[str, int] = field(repr=False)

    def request(self, items: Sequence[Item], new_tokens: int) -> Request:
        """A question about some items."""
        modalities = [item.modality for item in items]
        return Request(
            prompt_ids(self.markers, modalities, b"What is this?"), tuple(items), new_tokens
        )

    def memory(self) -> pd.DataFrame:
        """What every process holds in memory now. Columns ``node`` and ``rss_mb``."""
        names = ["server", *(f"edge {number}" for number in range(1, len(self.edges) + 1))]
        nodes = [self.server, *self.edges]
        sizes = [psutil.Process(node.pid).memory_info().rss / 1e6 for node in nodes]
        return pd.DataFrame({"node": names, "rss_mb": sizes})


@contextmanager
def bench(encoders_slowdown: float, llm_slowdown: float, edges: int = 2) -> Iterator[Bench]:
    """Start all nodes at once; they end with the block.

    More edge devices than this machine has cores would wait for each other.
    """
    slower = ("--encoders-slowdown", str(encoders_slowdown))
    first = ("--encoders", *slower, "--llm-slowdown", str(llm_slowdown))
    others = ("--encoders", *slower, "--no-llm")
    options = [("--encoders",), first, *[others] * (edges - 1)]
    nodes = [NodeProcess("--model", MODEL, *each) for each in options]
    with ExitStack() as ended:
        for node in nodes:
            ended.callback(node.stop)
            node.begin()
        for node in nodes:
            node.wait()
        with EdgeClient(nodes[0].address) as client:
            card = client.describe()
        yield Bench(nodes[0], nodes[1:], card.model, dict(card.markers))


def inputs(height: int = 420, width: int = 616, seconds: float = 5.0) -> tuple[Item, ...]:
    """A photograph, a video of two small frames a second, and sound."""
    video = media.panned_video("flower", seconds, 2.0, 224, 280)
    return (
        Item("image", media.photograph("china", height, width)),
        Item("video", video, 2.0),
        Item("audio", media.speech_like(seconds)),
    )


def strategy_runs(
    on: Bench,
    mbit_s: float,
    delay_s: float,
    new_tokens: int,
    repeats: int = 1,
    items: Sequence[Item] = (),
) -> pd.DataFrame:
    """Every strategy over one link, after one request each that warms up; asked of ``inputs``.

    Returns
    -------
    One row a run of ``RUNS``, medians over ``repeats``: ``strategy``, times in milliseconds,
    ``up_bytes``, ``down_bytes``, ``spread_ms`` (from the quickest to the slowest repeat in total),
    ``tokens_equal`` (the share of tokens equal to All Edge's), and ``payload_bytes`` (the items or
    features in what is sent).
    """
    items = items or inputs()
    outcomes: dict[str, list[Outcome]] = {name: [] for name, *_ in RUNS}
    addresses = [edge.address for edge in on.edges]
    with Link(on.server.address, up_mbit_s=mbit_s, down_mbit_s=mbit_s, delay_s=delay_s) as link:
        with ThreadPoolExecutor() as pool:
            warm_up = partial(_warm_up, on, items)
            list(pool.map(warm_up, [on.server.address, *addresses]))
        for _ in range(repeats):
            for name, strategy, edges, cut, wire in RUNS:
                request = on.request(items, new_tokens)
                _wait_until_idle(link)
                outcome = run(strategy, request, link, addresses[:edges], cut=cut, wire=wire)
                outcomes[name].append(replace(outcome, strategy=name))
    answer = outcomes["all-edge"][0].tokens
    table = pd.DataFrame(_median(runs, answer) for runs in outcomes.values())
    table["payload_bytes"] = [
        _payload_bytes(items, strategy, cut, wire) for _, strategy, _, cut, wire in RUNS
    ]
    return in_ms(table)


def _payload_bytes(items: Sequence[Item], strategy: str, cut: str, wire: str) -> int:
    """Of raw items, or of their features in the model that runs; counted, not measured."""
    if strategy != "hybrid":
        return sum(item.bytes for item in items) if strategy == "all-remote" else 0
    shapes = (
        shape
        for item in items
        for where, *shape in shapes_of(small_config(MODEL), item)
        if where == cut
    )
    return sum(wire_bytes(rows, width, wire) for rows, width in shapes)


def exact_facts(measured: pd.DataFrame) -> pd.DataFrame:
    """What holds whatever the machine.

    Parameters
    ----------
    measured
        Of ``strategy_runs``.

    Returns
    -------
    By strategy: ``payload_bytes``; whether the link carried them and at most 2 % more; for float32,
    whether all tokens equal All Edge's.
    """
    exact = [wire == "float32" for *_, wire in RUNS]
    more = measured["up_bytes"] - measured["payload_bytes"]
    little = (more >= 0) & (more <= 0.02 * measured["payload_bytes"])
    facts = {
        "payload_bytes": measured["payload_bytes"],
        "sent at most 2 % more": little,
        "tokens equal": (measured["tokens_equal"] == 1).where(exact, "not asked"),
    }
    return pd.DataFrame(facts).set_axis(measured["strategy"])


def claim_numbers(measured: pd.DataFrame) -> pd.DataFrame:
    """How many hybrid runs sent their features and little else, as a row of a ``claims.csv``."""
    facts = exact_facts(measured)
    hybrid = facts[facts.index.str.startswith("hybrid")]
    row = {"key": "hybrid runs that send features alone", "evidence": "measured", "n": 1}
    row |= {"value": float(hybrid["sent at most 2 % more"].sum())}
    return pd.DataFrame([row | {"low": float("nan"), "high": float("nan")}])


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


def _median(runs: Sequence[Outcome], answer: Sequence[int]) -> dict[str, object]:
    table = pd.DataFrame([asdict(outcome) for outcome in runs])
    same = sum(one == other for one, other in zip(runs[0].tokens, answer, strict=False))
    middle = table.drop(columns=["strategy", "tokens", "wait_s"]).median()
    return {
        "strategy": runs[0].strategy,
        **middle,
        "spread_s": table["total_s"].max() - table["total_s"].min(),
        "tokens_equal": same / len(answer),
    }


def residual_queue(
    on: Bench, rates_mbit_s: Sequence[float], missed_share: float = 0.25
) -> pd.DataFrame:
    """What a missed deadline leaves on the link: a short request right behind it has to wait.

    An All Remote request is given a part of the time that its upload takes. When its deadline is
    missed, bytes that the sender's kernel and the link hold already still drain.

    Parameters
    ----------
    on
        Running nodes; only the server is used.
    rates_mbit_s
        Of the link.
    missed_share
        Deadline as a share of the time that the upload needs.

    Returns
    -------
    Columns ``mbit_s``, ``deadline_s``, ``idle_s`` (the short request alone, the median of several),
    ``same_s`` and
    ``new_s`` (right after the miss, over the same connection and over another one), and
    ``residual_bytes`` (what the wait on the same connection amounts to at the link's rate).
    """
    rows = [_residual(on, mbit_s, missed_share) for mbit_s in rates_mbit_s]
    columns = ["mbit_s", "deadline_s", "idle_s", "same_s", "new_s"]
    table = pd.DataFrame(rows, columns=columns)
    waited_s = (table["same_s"] - table["idle_s"]).clip(lower=0)
    return table.assign(residual_bytes=waited_s * table["mbit_s"] * 1e6 / 8)


def _residual(on: Bench, mbit_s: float, missed_share: float) -> tuple[float, ...]:
    picture = inputs(720, 1280)[:1]
    deadline_s = missed_share * 8 * picture[0].bytes / (mbit_s * 1e6)
    waits: list[float] = []
    idle: list[float] = []
    for same in (True, False):
        with (
            Link(on.server.address, up_mbit_s=mbit_s, down_mbit_s=mbit_s) as link,
            EdgeClient(link.address) as client,
            EdgeClient(link.address) as other,
        ):
            for each in (client, other):
                _short_s(on, each)  # connects
            idle += [_short_s(on, client) for _ in range(SAMPLES)]
            long = on.request(picture, 1)
            try:
                client.ask(pack(long, on.model), long.id, deadline_s)
            except (DeadlineMissed, NodeUnreachable):  # the node may notice before the caller
                waits.append(_short_s(on, client if same else other))
            else:
                raise RuntimeError(f"{mbit_s} Mbit/s: the deadline was met; lower missed_share")
    return (mbit_s, deadline_s, median(idle), *waits)


def _short_s(on: Bench, client: EdgeClient) -> float:
    """Seconds of a request without items and with one token to answer."""
    request = on.request((), 1)
    return client.ask(pack(request, on.model), request.id, DEADLINE_S).times.total_s
