"""Is the decoupled model the same model? Real processes and a real socket against the whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from mllm_sched.pipeline import media
from mllm_sched.pipeline.checkpoints import load_model
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.monolithic import monolithic
from mllm_sched.pipeline.processes import NodeProcess
from mllm_sched.pipeline.prompts import prompt_ids
from mllm_sched.pipeline.requests import WIRE_TYPES, Item, Part, Request
from mllm_sched.pipeline.small_models import build
from mllm_sched.pipeline.split import EncoderHalf, split
from mllm_sched.pipeline.wire import pack

# Every supported architecture with what it takes; the last takes all at once.
MODELS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "small-llava": (("image",),),
    "small-voxtral": (("audio",),),
    "small-qwen2.5-vl": (("image",), ("video",)),
    "small-qwen2.5-omni": (("image",), ("audio",), ("video",), ("image", "audio", "video")),
}
CUTS = ("encoder", "projector")
TOKENS, DEADLINE_S = 12, 60.0
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
