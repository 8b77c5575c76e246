"""The three strategies on hardware that is not here: an AGX Orin at the edge, an A100 server.

Encoders at the edge are priced by the calibrated board; everything else by a roofline on data
sheets, with assumed shares of their peaks. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from mllm_sched import paths
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.pipeline import codecs, media
from mllm_sched.pipeline.wire_types import wire_bytes
from mllm_sched.pipeline.work import Work, read_work

FP16_BYTES = 2
TOKEN_BYTES = 4


@dataclass(frozen=True)
class Accelerator:
    """A device by its data sheet.

    Attributes
    ----------
    tflops
        FP16 on tensor cores, without sparsity.
    gb_per_s
        Bandwidth of its memory.
    compute_share, memory_share
        Of both that a model reaches (*assumed*).
    """

    name: str
    tflops: float
    gb_per_s: float
    compute_share: float = 0.4
    memory_share: float = 0.7

    def seconds(self, flops: float, read_bytes: float) -> float:
        """Time of work that is bound by arithmetic or by memory, whichever takes longer."""
        compute_s = flops / (self.tflops * 1e12 * self.compute_share)
        memory_s = read_bytes / (self.gb_per_s * 1e9 * self.memory_share)
        return max(compute_s, memory_s)


# NVIDIA, Jetson AGX Orin 64GB: 85 TFLOPS FP16 with sparsity, half of it without; 256-bit LPDDR5.
ORIN = Accelerator("AGX Orin 64GB", tflops=42.5, gb_per_s=204.8)
# NVIDIA, A100 80GB PCIe.
A100 = Accelerator("A100 80GB", tflops=312.0, gb_per_s=1935.0)


@dataclass(frozen=True)
class Language:
    """An LLM in FP16; by default Vicuna-7B, that of LLaVA-1.5.

    Attributes
    ----------
    parameters
        Weights that are read for every token.
    answer_tokens
        Of the answer.
    """

    parameters: float = 6.74e9
    answer_tokens: int = 64

    def seconds(self, device: Accelerator, prompt_tokens: int) -> float:
        """Prefill, then one pass over the weights for each token; the cache is neglected."""
        weights = FP16_BYTES * self.parameters
        prefill_s = device.seconds(2 * self.parameters * prompt_tokens, weights)
        token_s = device.seconds(2 * self.parameters, weights)
        return prefill_s + (self.answer_tokens - 1) * token_s


@dataclass(frozen=True)
class Encoded:
    """One item: its encoder, its bytes as input, and the shape of its features as they are sent."""

    encoder: str
    input_bytes: int
    rows: int
    width: int


# A 1080p image and LLaVA's tower; 30 s of PCM and Whisper small; 16 frames and VideoMAE base.
# Features before the projector, which here is always the smaller side.
ITEMS = (
    Encoded("clip-vit-l14-336", 1080 * 1920 * 3, 576, 1024),
    Encoded("whisper-small", 30 * 16000 * 2, 1500, 768),
    Encoded("videomae-base", 16 * 224 * 224 * 3, 1568, 768),
)


def compressed_items() -> tuple[Encoded, ...]:
    """The same items with inputs as JPEG, Opus, and one JPEG a frame; really compressed."""
    frames = media.panned_video("china", seconds=8.0, fps=2.0, height=224, width=224)
    sizes = (
        len(codecs.jpeg(media.photograph("china"))),
        len(codecs.opus(media.speech_like(30.0))),
        sum(len(codecs.jpeg(frame)) for frame in frames),
    )
    return tuple(replace(item, input_bytes=size) for item, size in zip(ITEMS, sizes, strict=True))


@dataclass(frozen=True)
class Setting:
    """Where and how the strategies are priced.

    Attributes
    ----------
    mbit_s, delay_s
        Of the link, and its one-way delay.
    edges
        Edge devices that hybrid spreads the encoders over.
    component, power_w
        Of the board, on which encoders run.
    wire
        Type of the features.
    """

    items: Sequence[Encoded] = ITEMS
    language: Language = Language()
    mbit_s: float = 10.0
    delay_s: float = 0.01
    edges: int = 1
    component: str = "gpu"
    power_w: float = 60
    wire: str = "float16"
    server: Accelerator = A100
    board: Accelerator = ORIN

    def __post_init__(self) -> None:
        if not self.mbit_s > 0:
            raise ValueError(f"mbit_s={self.mbit_s}: expected above 0")
        if self.edges < 1:
            raise ValueError(f"edges={self.edges}: expected 1 or more")


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
    """Price a strategy: ``all-edge``, ``all-remote`` or ``hybrid``.

    Raises
    ------
    ValueError
        For an unknown strategy.
    """
    prompt = sum(item.rows for item in setting.items) + 32
    llm = setting.language.seconds
    down = TOKEN_BYTES * setting.language.answer_tokens
    if strategy == "all-edge":
        return _cost(strategy, setting, _edge_s(setting, 1), llm(setting.board, prompt), 0, 0)
    if strategy == "all-remote":
        up = sum(item.input_bytes for item in setting.items)
        encode_s = sum(_server_s(setting, item) for item in setting.items)
    elif strategy == "hybrid":
        up = sum(wire_bytes(item.rows, item.width, setting.wire) for item in setting.items)
        encode_s = _edge_s(setting, setting.edges)
    else:
        raise ValueError(f"strategy={strategy!r}: expected all-edge, all-remote or hybrid")
    return _cost(strategy, setting, encode_s, llm(setting.server, prompt), up, down)


def cost_table(setting: Setting = Setting(), edges: int = 3) -> pd.DataFrame:
    """All strategies, and the variants of both that send something. Times in milliseconds.

    All Remote sends raw input, or compressed; hybrid sends float16 or int8, and in its last row
    encodes on several edge devices at once.
    """
    compressed = replace(setting, items=compressed_items())
    narrow = replace(setting, wire="int8")
    rows = {
        "all-edge": modelled("all-edge", setting),
        "all-remote": modelled("all-remote", setting),
        "all-remote, compressed": modelled("all-remote", compressed),
        "hybrid, float16": modelled("hybrid", replace(setting, wire="float16")),
        "hybrid, int8": modelled("hybrid", narrow),
        f"hybrid, int8, {edges} edges": modelled("hybrid", replace(narrow, edges=edges)),
    }
    costs = [asdict(replace(cost, strategy=name)) for name, cost in rows.items()]
    return in_ms(pd.DataFrame(costs))


def savings(table: pd.DataFrame) -> pd.DataFrame:
    """What hybrid saves of the quicker other strategy's time, as rows of a ``claims.csv``.

    Parameters
    ----------
    table
        Of ``cost_table``.
    """
    total = table.set_index("strategy")["total_ms"]
    raw = min(total["all-edge"], total["all-remote"])
    compressed = min(total["all-edge"], total["all-remote, compressed"])
    rows = {
        "int8 against raw": 1 - total["hybrid, int8"] / raw,
        "float16 against raw": 1 - total["hybrid, float16"] / raw,
        "int8 against compressed": 1 - total["hybrid, int8"] / compressed,
    }
    found = pd.DataFrame({"key": list(rows), "value": list(rows.values())})
    return found.assign(low=float("nan"), high=float("nan"), n=1, evidence="simulated")


def region(setting: Setting, rates_mbit_s: Sequence[float], gains: Sequence[float]) -> pd.DataFrame:
    """What hybrid saves over link rates, and over how many times smaller features are than inputs.

    Returns
    -------
    Columns ``mbit_s``, ``gain``, and ``saving``: one less hybrid's share of the total time of the
    quicker of the two other strategies; negative where hybrid is slower.
    """
    hybrid = modelled("hybrid", setting)
    sent = sum(item.input_bytes for item in setting.items)
    rows = []
    for mbit_s in rates_mbit_s:
        there = replace(setting, mbit_s=mbit_s)
        others = [modelled(name, there).total_s for name in ("all-edge", "all-remote")]
        for gain in gains:
            sent_s = _sent_s(there, sent / gain + hybrid.down_bytes)
            total_s = sent_s + hybrid.encode_s + hybrid.llm_s
            rows.append((mbit_s, gain, 1 - total_s / min(others)))
    return pd.DataFrame(rows, columns=["mbit_s", "gain", "saving"])


def region_of(
    items: Sequence[Encoded], rates_mbit_s: Sequence[float], gains: Sequence[float]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The ``region`` of some items, and where their own features lie in it, by wire type."""
    setting = Setting(items=items)
    sent = sum(item.input_bytes for item in items)
    marks = {
        wire: sent / modelled("hybrid", replace(setting, wire=wire)).up_bytes
        for wire in ("float16", "int8")
    }
    return region(setting, rates_mbit_s, gains), marks


def in_ms(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that end in ``_s`` as ``_ms``."""
    seconds = [name for name in table if str(name).endswith("_s")]
    named = {name: f"{str(name)[:-2]}_ms" for name in seconds}
    return table.assign(**{name: 1000 * table[name] for name in seconds}).rename(columns=named)


def paper_table() -> pd.DataFrame:
    """The paper's own table, in milliseconds; its names are those used here."""
    table = pd.read_csv(paths.PAPER / "strategies.csv")
    names = {"All Edge": "all-edge", "All Remote": "all-remote", "Hybrid Edge": "hybrid"}
    table["strategy"] = table["strategy"].map(names)
    return table.rename(columns={"encoding_ms": "encode_ms"})


def effects(table: pd.DataFrame, slow_encode_ms: float, hybrid: str = "hybrid") -> pd.DataFrame:
    """The two effects that hide in hybrid, one after the other.

    Parameters
    ----------
    table
        With ``strategy``, ``total_ms``, ``transmission_ms``, ``encode_ms`` and ``llm_ms``.
    slow_encode_ms
        Encoding time of one edge device, all encoders one after another.
    hybrid
        The row that has both effects.

    Returns
    -------
    Rows: all-remote; features instead of raw input; and encoding as fast as in ``hybrid``.
    """
    rows = table.set_index("strategy")
    remote, both = rows.loc["all-remote"], rows.loc[hybrid]
    first = both["transmission_ms"] + slow_encode_ms + both["llm_ms"]
    steps = {
        "all-remote": remote["total_ms"],
        "fewer bytes, encoded on one edge": first,
        "and faster encoding": both["total_ms"],
    }
    return pd.DataFrame({"step": list(steps), "total_ms": list(steps.values())})


def implied_mbit_s(transmission_ms: float, sent_bytes: float) -> float:
    """The link rate at which so many bytes take so long.

    Examples
    --------
    >>> round(implied_mbit_s(5500, 1080 * 1920 * 3), 1)
    9.0
    """
    return 8 * sent_bytes / (transmission_ms / 1000) / 1e6


def _edge_s(setting: Setting, devices: int) -> float:
    """Until the last device is done; the longest encoder first, each where it can begin first."""
    model, work = calibrated_model(), read_work()
    busy_s = [0.0] * devices
    for seconds in sorted(
        (
            model.latency_s(work[item.encoder], setting.component, setting.power_w)
            for item in setting.items
        ),
        reverse=True,
    ):
        busy_s[busy_s.index(min(busy_s))] += seconds
    return max(busy_s)


def _server_s(setting: Setting, item: Encoded) -> float:
    work: Work = read_work()[item.encoder]
    return setting.server.seconds(work.flops, work.bytes / 2)  # counted in FP32, run in FP16


def _cost(
    strategy: str, setting: Setting, encode_s: float, llm_s: float, up: int, down: int
) -> Cost:
    """A strategy that sends nothing does not wait for the link either."""
    sent_s = _sent_s(setting, up + down) if up else 0.0
    return Cost(strategy, sent_s, encode_s, llm_s, sent_s + encode_s + llm_s, up, down)


def _sent_s(setting: Setting, sent_bytes: float) -> float:
    return 8 * sent_bytes / (setting.mbit_s * 1e6) + 2 * setting.delay_s
