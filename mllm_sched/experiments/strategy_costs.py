"""The three strategies on hardware that is not here: an AGX Orin at the edge, an A100 server.

The calibrated board prices encoders at the edge, in FP32 as its measurements were; a roofline on
data sheets, with assumed shares of their peaks, prices everything else. Nothing here is measured.
``variants`` changes one choice at a time: hybrid's time over that of the quicker of All Edge and
All Remote is ``ratio``. The paper's is 2500 / 7500; a saving of four fifths of the paper's is a
ratio of 0.47.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.pipeline import media
from mllm_sched.pipeline.wire import wire_bytes
from mllm_sched.pipeline.work import read_work

STRATEGIES = ("all-edge", "all-remote", "hybrid")
CUTS = ("encoder", "projector")
PRECISIONS = ("float16", "float32")
FP16_BYTES, TOKEN_BYTES = 2, 4


@dataclass(frozen=True)
class Accelerator:
    """A device by its data sheet."""

    tflops: float  # FP16 on tensor cores without sparsity
    fp32_tflops: float  # without tensor cores
    gb_per_s: float  # memory bandwidth
    compute_share: float = 0.4  # of the peak that a model reaches (*assumed*)
    memory_share: float = 0.7  # likewise (*assumed*)

    def seconds(self, flops: float, read_bytes: float, precision: str = "float16") -> float:
        """Time of work that is bound by arithmetic or by memory, whichever takes longer."""
        tflops = self.tflops if precision == "float16" else self.fp32_tflops
        compute_s = flops / (tflops * 1e12 * self.compute_share)
        memory_s = read_bytes / (self.gb_per_s * 1e9 * self.memory_share)
        return max(compute_s, memory_s)


# NVIDIA, Jetson AGX Orin 64GB: 85 TFLOPS FP16 with sparsity, half of it without; 256-bit LPDDR5.
ORIN = Accelerator(tflops=42.5, fp32_tflops=5.3, gb_per_s=204.8)
# NVIDIA, A100 80GB PCIe.
A100 = Accelerator(tflops=312.0, fp32_tflops=19.5, gb_per_s=1935.0)


@dataclass(frozen=True)
class Language:
    """An LLM in FP16; by default Vicuna-7B, that of LLaVA-1.5."""

    parameters: float = 6.74e9  # weights, all read for every token
    answer_tokens: int = 64
    width: int = 4096  # of a token, and so of features behind the projector

    def seconds(self, device: Accelerator, prompt_tokens: int) -> float:
        """Prefill, then one pass over the weights for each token; the cache is neglected."""
        weights = FP16_BYTES * self.parameters
        prefill_s = device.seconds(2 * self.parameters * prompt_tokens, weights)
        token_s = device.seconds(2 * self.parameters, weights)
        return prefill_s + (self.answer_tokens - 1) * token_s


@dataclass(frozen=True)
class EncodingPrice:
    """One item: its encoder, its bytes as input, and the shape of its encoder's features."""

    encoder: str
    input_bytes: int
    rows: int
    width: int


# A 1080p image and LLaVA's tower; 30 s of PCM and Whisper small; 16 frames and VideoMAE base.
# These encoders have the narrower side before the projector, which keeps the number of rows.
ITEMS = (
    EncodingPrice("clip-vit-l14-336", 1080 * 1920 * 3, 576, 1024),
    EncodingPrice("whisper-small", 30 * 16000 * 2, 1500, 768),
    EncodingPrice("videomae-base", 16 * 224 * 224 * 3, 1568, 768),
)
INPUTS = ("raw", "as the encoder sees it", "compressed")


@lru_cache
def items_as(form: str) -> tuple[EncodingPrice, ...]:
    """``ITEMS`` with inputs in one of the forms of ``INPUTS``.

    As its encoder sees it, the image has 336 x 336 pixels; sound and video are raw already so.
    Compressed are JPEG of the 1080p image, Opus, and one JPEG a frame; really compressed.
    """
    raw = [item.input_bytes for item in ITEMS]
    if form == "compressed":
        frames = media.panned_video("china", seconds=8.0, fps=2.0, height=224, width=224)
        sizes = [
            len(media.jpeg(media.photograph("china"))),
            len(media.opus(media.speech_like(30.0))),
            sum(len(media.jpeg(frame)) for frame in frames),
        ]
    else:
        sizes = {"raw": raw, "as the encoder sees it": [336 * 336 * 3, *raw[1:]]}[form]
    pairs = zip(ITEMS, sizes, strict=True)
    return tuple(replace(item, input_bytes=size) for item, size in pairs)


@dataclass(frozen=True)
class Setting:
    """Where and how the strategies are priced."""

    items: Sequence[EncodingPrice] = ITEMS
    language: Language = Language()
    mbit_s: float = 10.0  # link rate
    delay_s: float = 0.01  # one way
    edges: int = 1  # devices among which hybrid spreads the encoders; each sensor sits at its own
    component: str = "gpu"  # of the board, on which encoders run
    power_w: float = 60
    wire: str = "float16"  # type of the features
    cut: str = "encoder"  # features before the projector (``encoder``) or behind it (``projector``)
    server_encodes: str = "float16"  # precision in All Remote: ``float16`` or ``float32``
    server: Accelerator = A100

    def __post_init__(self) -> None:
        if not self.mbit_s > 0:
            raise ValueError(f"mbit_s={self.mbit_s}: expected above 0")
        if self.edges < 1:
            raise ValueError(f"edges={self.edges}: expected 1 or more")
        if self.cut not in CUTS:
            raise ValueError(f"cut={self.cut!r}: expected encoder or projector")
        if self.server_encodes not in PRECISIONS:
            raise ValueError(f"server_encodes={self.server_encodes!r}: expected float16 or float32")

    def feature_bytes(self, item: EncodingPrice) -> int:
        """Of an item's features, as they are sent."""
        width = item.width if self.cut == "encoder" else self.language.width
        return wire_bytes(item.rows, width, self.wire)


@dataclass(frozen=True)
class Cost:
    """What a strategy takes; seconds, and bytes over the link."""

    strategy: str
    transmission_s: float
    encode_s: float
    llm_s: float
    total_s: float
    up_bytes: int
    down_bytes: int


def modelled(strategy: str, setting: Setting = Setting()) -> Cost:
    """Price a strategy: ``all-edge``, ``all-remote`` or ``hybrid``; ValueError for another."""
    up, transmission_s, llm_runs_on = 0, 0.0, setting.server
    if strategy == "all-edge":
        encode_s, llm_runs_on = _edges_s(setting, 1), ORIN
    elif strategy == "all-remote":
        up = sum(item.input_bytes for item in setting.items)
        encode_s = sum(server_s(setting, item) for item in setting.items)
    elif strategy == "hybrid":
        up = sum(setting.feature_bytes(item) for item in setting.items)
        encode_s = _edges_s(setting, setting.edges)
    else:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}")
    down = TOKEN_BYTES * setting.language.answer_tokens if up else 0
    if up:
        transmission_s = sent_s(setting, up + down)
    llm_s = setting.language.seconds(llm_runs_on, sum(item.rows for item in setting.items) + 32)
    total_s = transmission_s + encode_s + llm_s
    return Cost(strategy, transmission_s, encode_s, llm_s, total_s, up, down)


def ratio(setting: Setting) -> float:
    """Hybrid's time over that of the quicker of the two other strategies; above 1 it is slower."""
    others = min(modelled(name, setting).total_s for name in ("all-edge", "all-remote"))
    return modelled("hybrid", setting).total_s / others


def edge_s(setting: Setting, item: EncodingPrice) -> float:
    """Encoding time of an item on one edge device."""
    return _on_board_s(item.encoder, setting.component, setting.power_w)


@lru_cache
def _on_board_s(encoder: str, component: str, power_w: float) -> float:
    return calibrated_model().latency_s(read_work()[encoder], component, power_w)


def server_s(setting: Setting, item: EncodingPrice) -> float:
    """Encoding time of an item on the server; kernel launches cost nothing."""
    work = read_work()[item.encoder]  # counted in FP32
    if setting.server_encodes == "float32":
        return setting.server.seconds(work.flops, work.bytes, "float32")
    return setting.server.seconds(work.flops, work.bytes / 2)


def _edges_s(setting: Setting, devices: int) -> float:
    """Until the last device is done; the longest encoder first, each where it can begin first."""
    busy_s = [0.0] * devices
    for seconds in sorted((edge_s(setting, item) for item in setting.items), reverse=True):
        busy_s[busy_s.index(min(busy_s))] += seconds
    return max(busy_s)


def sent_s(setting: Setting, sent_bytes: float) -> float:
    """Until so many bytes have crossed the link, and an answer has begun to come back."""
    return 8 * sent_bytes / (setting.mbit_s * 1e6) + 2 * setting.delay_s


def cost_table(setting: Setting) -> pd.DataFrame:
    """All strategies, and the variants of both that send something. Times in milliseconds."""
    resized, compressed = (replace(setting, items=items_as(form)) for form in INPUTS[1:])
    narrow = replace(setting, wire="int8")
    costs = {
        "all-edge": modelled("all-edge", setting),
        "all-remote": modelled("all-remote", setting),
        "all-remote, resized": modelled("all-remote", resized),
        "all-remote, compressed": modelled("all-remote", compressed),
        "hybrid, float16": modelled("hybrid", replace(setting, wire="float16")),
        "hybrid, int8": modelled("hybrid", narrow),
        "hybrid, int8, 3 edges": modelled("hybrid", replace(narrow, edges=3)),
    }
    table = pd.DataFrame([asdict(cost) | {"strategy": name} for name, cost in costs.items()])
    seconds = [f"{stage}_s" for stage in ("transmission", "encode", "llm", "total")]
    table[seconds] *= 1000
    return table.rename(columns={name: name.replace("_s", "_ms") for name in seconds})


def variants(base: Setting) -> Iterator[tuple[str, Setting]]:
    """What is changed, and the setting with it; first the base itself."""

    def other(**changes: Any) -> Setting:
        return replace(base, **changes)

    yield "as in the claim", base
    for mbit_s in (1.0, 5.0, 20.0, 100.0):
        yield f"link of {mbit_s:g} Mbit/s", other(mbit_s=mbit_s)
    for tokens in (16, 256):
        language = replace(base.language, answer_tokens=tokens)
        yield f"answers of {tokens} tokens", other(language=language)
    yield "cut behind the projector", other(cut="projector")
    kept = [item.encoder for item in base.items]
    for form in INPUTS[1:]:
        items = tuple(item for item in items_as(form) if item.encoder in kept)
        yield f"input {form}", other(items=items)
    for item, name in zip(ITEMS, ("image", "sound", "video"), strict=True):
        mine = tuple(own for own in base.items if own.encoder == item.encoder)
        yield f"the {name} alone", other(items=mine or (item,))
    yield "server encodes in float32", other(server_encodes="float32")
    yield "three edges", other(edges=3)
    yield "encoders on the DLA", other(component="dla")
    vicuna_13b = replace(base.language, parameters=13.0e9, width=5120)
    yield "an LLM of 13 billion weights", other(language=vicuna_13b)
    slow = {name: getattr(base.server, name) / 2 for name in ("compute_share", "memory_share")}
    yield "server at half the assumed shares", other(server=replace(base.server, **slow))


def sensitivity(base: Setting = Setting()) -> pd.DataFrame:
    """The strategies with one choice changed at a time; hybrid in both types on the wire.

    Columns ``choice``; ``all_edge_ms``, ``all_remote_ms``, ``float16_ms``, ``int8_ms`` in total;
    ``float16_ratio``, ``int8_ratio``, hybrid's time over that of the quicker other strategy.
    """
    rows = []
    for choice, setting in variants(base):
        float16, int8 = (replace(setting, wire=wire) for wire in ("float16", "int8"))
        costs = [modelled(name, setting) for name in ("all-edge", "all-remote")]
        costs += [modelled("hybrid", there) for there in (float16, int8)]
        totals = [1000 * cost.total_s for cost in costs]
        rows.append((choice, *totals, ratio(float16), ratio(int8)))
    names = ["all_edge_ms", "all_remote_ms", "float16_ms", "int8_ms"]
    return pd.DataFrame(rows, columns=["choice", *names, "float16_ratio", "int8_ratio"])


HOLDS = 0.47
LOG_RATES = (-3.0, 6.0)  # of the Mbit/s between which rates are looked for


def holding_rates(setting: Setting) -> tuple[float, float]:
    """The least and greatest link rates in Mbit/s at which hybrid's ratio is at most ``HOLDS``.

    The ratio falls with the rate while All Edge is the quicker other, and is monotone beyond; so it
    is least where the two others take the same time, or at an end. NaN twice if it never holds.
    """

    def above(log_rate: float) -> float:
        return ratio(replace(setting, mbit_s=10**log_rate)) - HOLDS

    edge, remote = (modelled(name, setting) for name in ("all-edge", "all-remote"))
    link_s = remote.transmission_s - 2 * setting.delay_s
    left_s = edge.total_s - (remote.total_s - link_s)  # for the link, if both take the same time
    tie = np.log10(setting.mbit_s * link_s / left_s) if left_s > 0 else LOG_RATES[1]
    best = min((float(np.clip(tie, *LOG_RATES)), *LOG_RATES), key=above)
    if above(best) > 0:
        return float("nan"), float("nan")
    low, high = (
        end if above(end) <= 0 else brentq(above, *sorted((end, best))) for end in LOG_RATES
    )
    return float(10**low), float(10**high)


def where_it_holds(base: Setting = Setting()) -> pd.DataFrame:
    """By the type on the wire: between which link rates, and which lengths of the answer.

    Columns ``wire``, ``from_mbit_s``, ``to_mbit_s``, ``from_tokens``, ``to_tokens``, of answers of
    up to 1000 tokens; NaN where the claim holds nowhere.
    """
    rows = []
    for wire in ("float16", "int8"):
        setting = replace(base, wire=wire)
        held = []
        for tokens in range(1, 1001):
            language = replace(base.language, answer_tokens=tokens)
            if ratio(replace(setting, language=language)) <= HOLDS:
                held.append(tokens)
        first, last = (held[0], held[-1]) if held else (np.nan, np.nan)
        rows.append((wire, *holding_rates(setting), first, last))
    columns = ["wire", "from_mbit_s", "to_mbit_s", "from_tokens", "to_tokens"]
    return pd.DataFrame(rows, columns=columns)


def region(
    setting: Setting, rates_mbit_s: NDArray[np.float64], gains: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Hybrid's ratio by input size over feature size and by link rate, shape (gains, rates)."""
    edge, remote, hybrid = (modelled(name, setting) for name in STRATEGIES)

    def over_link_s(sent_bytes: float | NDArray[np.float64]) -> NDArray[np.float64]:
        return 8 * sent_bytes / (rates_mbit_s * 1e6) + 2 * setting.delay_s

    remote_s = over_link_s(remote.up_bytes + remote.down_bytes) + remote.encode_s + remote.llm_s
    features_s = over_link_s(remote.up_bytes / gains[:, None] + hybrid.down_bytes)
    return (features_s + hybrid.encode_s + hybrid.llm_s) / np.minimum(edge.total_s, remote_s)


def claim_numbers(base: Setting = Setting()) -> pd.DataFrame:
    """Numbers of the claims, as rows of a ``claims.csv``; ``base`` is the case of the claim."""
    changed = sensitivity(base).set_index("choice")
    case, resized = changed.loc["as in the claim"], changed.loc[f"input {INPUTS[1]}"]
    low, high = holding_rates(replace(base, wire="int8"))
    edge, remote = modelled("all-edge", base), modelled("all-remote", base)
    float16, int8 = (modelled("hybrid", replace(base, wire=wire)) for wire in ("float16", "int8"))
    one, three = (modelled("hybrid", replace(base, edges=edges)) for edges in (1, 3))
    alone = dict(variants(base))["the image alone"]
    image = modelled("hybrid", replace(alone, wire="float16"))
    rows = {
        "float16 against raw": case["float16_ratio"],
        "int8 against raw": case["int8_ratio"],
        "float16 against resized": resized["float16_ratio"],
        "int8 against resized": resized["int8_ratio"],
        "int8 against compressed": changed.loc["input compressed", "int8_ratio"],
        "int8, 16 tokens": changed.loc["answers of 16 tokens", "int8_ratio"],
        "int8, 256 tokens": changed.loc["answers of 256 tokens", "int8_ratio"],
        "float16, the image alone": changed.loc["the image alone", "float16_ratio"],
        "int8 behind the projector": changed.loc["cut behind the projector", "int8_ratio"],
        "int8 holds from, Mbit/s": low,
        "int8 holds to, Mbit/s": high,
        "transmission, float16": float16.transmission_s / remote.transmission_s,
        "transmission, int8": int8.transmission_s / remote.transmission_s,
        "transmission, the image alone": (
            image.transmission_s / modelled("all-remote", alone).transmission_s
        ),
        "encoding, three edges": three.encode_s / edge.encode_s,
        "encoding, one edge": one.encode_s / edge.encode_s,
        "LLM on the server": remote.llm_s / edge.llm_s,
        "All Edge over All Remote": edge.total_s / remote.total_s,
    }
    found = pd.DataFrame({"key": list(rows), "value": list(rows.values())})
    return found.assign(low=float("nan"), high=float("nan"), n=1, evidence="simulated")
