"""The three strategies on hardware that is not here: an AGX Orin at the edge, an A100 server.

Encoders at the edge are priced by the calibrated board, in FP32 as its measurements were;
everything else by a roofline on data sheets, with assumed shares of their peaks. Nothing here is
measured. What becomes of these prices stands in ``strategy_tables`` and ``strategy_sensitivity``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.pipeline import media
from mllm_sched.pipeline.wire_header import wire_bytes
from mllm_sched.pipeline.work import read_work
from mllm_sched.study.accelerators import A100, ORIN, PRECISIONS, Accelerator

FP16_BYTES = 2
TOKEN_BYTES = 4
CUTS = ("encoder", "projector")


@dataclass(frozen=True)
class Language:
    """An LLM in FP16; by default Vicuna-7B, that of LLaVA-1.5.

    Attributes
    ----------
    parameters
        Weights that are read for every token.
    answer_tokens
        Of the answer.
    width
        Of a token, and so of features behind the projector.
    """

    parameters: float = 6.74e9
    answer_tokens: int = 64
    width: int = 4096

    def seconds(self, device: Accelerator, prompt_tokens: int) -> float:
        """Prefill, then one pass over the weights for each token; the cache is neglected."""
        weights = FP16_BYTES * self.parameters
        prefill_s = device.seconds(2 * self.parameters * prompt_tokens, weights)
        token_s = device.seconds(2 * self.parameters, weights)
        return prefill_s + (self.answer_tokens - 1) * token_s


@dataclass(frozen=True)
class Encoded:
    """One item: its encoder, its bytes as input, and the shape of its encoder's features."""

    encoder: str
    input_bytes: int
    rows: int
    width: int


# A 1080p image and LLaVA's tower; 30 s of PCM and Whisper small; 16 frames and VideoMAE base.
# These encoders have the narrower side before the projector, which keeps the number of rows.
ITEMS = (
    Encoded("clip-vit-l14-336", 1080 * 1920 * 3, 576, 1024),
    Encoded("whisper-small", 30 * 16000 * 2, 1500, 768),
    Encoded("videomae-base", 16 * 224 * 224 * 3, 1568, 768),
)
INPUTS = ("raw", "as the encoder sees it", "compressed")


@lru_cache(maxsize=1)
def _compressed_bytes() -> tuple[int, ...]:
    frames = media.panned_video("china", seconds=8.0, fps=2.0, height=224, width=224)
    return (
        len(media.jpeg(media.photograph("china"))),
        len(media.opus(media.speech_like(30.0))),
        sum(len(media.jpeg(frame)) for frame in frames),
    )


def items_as(form: str) -> tuple[Encoded, ...]:
    """``ITEMS`` with inputs in one of the forms of ``INPUTS``.

    As its encoder sees it, the image has 336 x 336 pixels; sound and video are raw already so.
    Compressed are JPEG of the 1080p image, Opus, and one JPEG a frame; really compressed.

    Raises
    ------
    ValueError
        For another form.

    Examples
    --------
    >>> [item.input_bytes for item in items_as("as the encoder sees it")]
    [338688, 960000, 2408448]
    """
    raw = tuple(item.input_bytes for item in ITEMS)
    sizes = {"raw": raw, "as the encoder sees it": (336 * 336 * 3, *raw[1:])}
    if form not in INPUTS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(INPUTS)}")
    chosen = _compressed_bytes() if form == "compressed" else sizes[form]
    return tuple(replace(item, input_bytes=size) for item, size in zip(ITEMS, chosen, strict=True))


@dataclass(frozen=True)
class Setting:
    """Where and how the strategies are priced.

    Attributes
    ----------
    mbit_s, delay_s
        Of the link, and its one-way delay.
    edges
        Edge devices that hybrid spreads the encoders over; each sensor sits at its own, so that
        nothing is sent between them.
    component, power_w
        Of the board, on which encoders run.
    wire
        Type of the features.
    cut
        Whether features are those of the ``encoder``, before the projector, or of the
        ``projector``, behind it.
    server_encodes
        Precision of the encoders on the server, in All Remote: ``float16`` or ``float32``.
    """

    items: Sequence[Encoded] = ITEMS
    language: Language = Language()
    mbit_s: float = 10.0
    delay_s: float = 0.01
    edges: int = 1
    component: str = "gpu"
    power_w: float = 60
    wire: str = "float16"
    cut: str = "encoder"
    server_encodes: str = "float16"
    server: Accelerator = A100
    board: Accelerator = ORIN

    def __post_init__(self) -> None:
        if not self.mbit_s > 0:
            raise ValueError(f"mbit_s={self.mbit_s}: expected above 0")
        if self.edges < 1:
            raise ValueError(f"edges={self.edges}: expected 1 or more")
        if self.cut not in CUTS:
            raise ValueError(f"cut={self.cut!r}: expected encoder or projector")
        if self.server_encodes not in PRECISIONS:
            raise ValueError(f"server_encodes={self.server_encodes!r}: expected float16 or float32")

    def feature_bytes(self, item: Encoded) -> int:
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
        encode_s = sum(server_s(setting, item) for item in setting.items)
    elif strategy == "hybrid":
        up = sum(setting.feature_bytes(item) for item in setting.items)
        encode_s = _edge_s(setting, setting.edges)
    else:
        raise ValueError(f"strategy={strategy!r}: expected all-edge, all-remote or hybrid")
    return _cost(strategy, setting, encode_s, llm(setting.server, prompt), up, down)


def ratio(setting: Setting) -> float:
    """Hybrid's time over that of the quicker of the two other strategies; above 1 it is slower."""
    others = min(modelled(name, setting).total_s for name in ("all-edge", "all-remote"))
    return modelled("hybrid", setting).total_s / others


def edge_s(setting: Setting, item: Encoded) -> float:
    """Encoding time of an item on one edge device."""
    work = read_work()[item.encoder]
    return calibrated_model().latency_s(work, setting.component, setting.power_w)


def server_s(setting: Setting, item: Encoded) -> float:
    """Encoding time of an item on the server; what launches its operators costs nothing."""
    work = read_work()[item.encoder]  # counted in FP32
    if setting.server_encodes == "float32":
        return setting.server.seconds(work.flops, work.bytes, "float32")
    return setting.server.seconds(work.flops, work.bytes / 2)


def _edge_s(setting: Setting, devices: int) -> float:
    """Until the last device is done; the longest encoder first, each where it can begin first."""
    busy_s = [0.0] * devices
    for seconds in sorted((edge_s(setting, item) for item in setting.items), reverse=True):
        busy_s[busy_s.index(min(busy_s))] += seconds
    return max(busy_s)


def _cost(
    strategy: str, setting: Setting, encode_s: float, llm_s: float, up: int, down: int
) -> Cost:
    """A strategy that sends nothing does not wait for the link either."""
    seconds = sent_s(setting, up + down) if up else 0.0
    return Cost(strategy, seconds, encode_s, llm_s, seconds + encode_s + llm_s, up, down)


def sent_s(setting: Setting, sent_bytes: float) -> float:
    """Until so many bytes have crossed the link, and an answer has begun to come back."""
    return 8 * sent_bytes / (setting.mbit_s * 1e6) + 2 * setting.delay_s
