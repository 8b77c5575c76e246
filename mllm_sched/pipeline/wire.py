"""The format of a message: a request as safetensors with a versioned JSON header, in pieces.

The layout::

    8 bytes     length of what follows, little-endian
    JSON        safetensors' table of tensors, with one text under __metadata__:
                {"request": "{... JSON of Header ...}"}
    tensors     prompt, part0, part0.scale, part1, ...

A message is untrusted: nothing is unpickled, every size is bounded before memory is taken, and
whatever is wrong ends in a ``WireError``. PyTorch is imported late: a front does without.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import (
    AUDIO_HZ,
    CUTS,
    RAW,
    WIRE_TYPES,
    Item,
    Layout,
    Part,
    Request,
)
from mllm_sched.tasks import MODALITIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf

VERSION = 1
MAX_HEADER_BYTES = 64 << 10
MAX_ID = 64
MAX_ITEMS = 64
MAX_TOKENS = 32768  # of a prompt with its features and its answer
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
SCALE_BYTES = 4  # of each row in int8
# safetensors' names of the types.
_NAMES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"int8": "I8", "uint8": "U8", "int16": "I16"},
}
# Of raw items: an encoder enlarges what is small or narrow, so few bytes could fill the memory.
MAX_SIDE, MAX_ASPECT, MAX_FRAMES, MAX_AUDIO_S = 8192, 20, 256, 1200
PIECE_BYTES = 64 << 10
SLOWEST_BYTES_S = 8 << 10  # an upload that is slower on average holds a place for too long


class WireError(ValueError):
    """Bytes that are no valid request."""


class MismatchError(WireError):
    """A valid request that is meant for another model or another kind of server."""


@dataclass(frozen=True)
class PartHeader:
    """One item, described."""

    modality: str
    grid: tuple[int, int, int] | None = None
    seconds_per_grid: float | None = None
    mel_frames: int | None = None
    rate_hz: float | None = None

    @property
    def layout(self) -> Layout:
        """Layout of its features."""
        return Layout(self.grid, self.seconds_per_grid, self.mel_frames)


@dataclass(frozen=True)
class Header:
    """A request without its tensors."""

    version: int
    id: str
    model: str
    cut: str
    wire: str
    parts: tuple[PartHeader, ...]
    max_new_tokens: int
    logits: bool


@dataclass(frozen=True, eq=False)
class Message:
    """A request that was checked: raw ``items`` if it is cut at the input, else ``parts``."""

    header: Header
    prompt: tuple[int, ...]
    items: tuple[Item, ...] = ()
    parts: tuple[Part, ...] = ()


def wire_bytes(rows: int, width: int, wire: str) -> int:
    """Bytes of the features of an item, without the header."""
    _check_type(wire)
    return rows * (width * VALUE_BYTES[wire] + (SCALE_BYTES if wire == "int8" else 0))


def quantised(features: Tensor, wire: str) -> dict[str, Tensor]:
    """Features as they travel: under ``""``, and for int8 the scale of each row under ``.scale``.

    Raises ValueError for an unknown type, or values that float16 cannot hold.

    Examples
    --------
    >>> import torch
    >>> sent = quantised(torch.tensor([[1.0, -2.0]]), "int8")
    >>> sent[""].tolist(), round(float(sent[".scale"]), 4)
    ([[64, -127]], 0.0157)
    """
    import torch

    _check_type(wire)
    if wire == "int8":
        rows = features.float()
        scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        return {"": (rows / scale).round().clamp(-127, 127).to(torch.int8), ".scale": scale}
    sent = features.to(getattr(torch, wire)).contiguous()
    if features.isfinite().all() and not sent.isfinite().all():
        raise ValueError("features beyond what float16 holds: send them as bfloat16 or int8")
    return {"": sent}


def dequantised(sent: Tensor, scale: Tensor | None = None) -> Tensor:
    """Features in float32, from what was sent."""
    return sent.float() if scale is None else sent.float() * scale.float()


def _check_type(wire: str) -> None:
    if wire not in WIRE_TYPES:
        raise ValueError(f"wire={wire!r}: expected one of {', '.join(WIRE_TYPES)}")


class Rules:
    """What a server of either ``half`` of a model takes; ``cuts`` are those served."""

    def __init__(
        self,
        half: EncoderHalf | LanguageHalf,
        cuts: Sequence[str] = CUTS,
        *,
        max_new_tokens: int = 1024,
        max_logits_bytes: int = 64 << 20,
    ) -> None:
        self.half = half
        self.dtype = half.dtype
        self.cuts = tuple(cuts)
        text = half.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.max_tokens = min(MAX_TOKENS, int(text.max_position_embeddings))
        self.max_new_tokens = max_new_tokens
        self.max_logits_bytes = max_logits_bytes

    def check(self, header: Header) -> None:
        """WireError if a request is not for this server, or asks for too much."""
        if header.model != self.half.identity:
            theirs, ours = header.model[:12], self.half.identity[:12]
            raise MismatchError(f"made for model {theirs}, this server holds {ours}")
        if header.cut not in self.cuts:
            raise MismatchError(f"cut at {header.cut}, this server takes {', '.join(self.cuts)}")
        if header.max_new_tokens > self.max_new_tokens:
            raise WireError(
                f"max_new_tokens={header.max_new_tokens}: at most {self.max_new_tokens} here"
            )
        if len(header.parts) > MAX_ITEMS:
            raise WireError(f"{len(header.parts)} items: at most {MAX_ITEMS} here")
        for part in header.parts:
            if part.modality not in self.half.projectors:
                held = ", ".join(self.half.projectors)
                raise MismatchError(f"{part.modality}: this model takes {held}")

    def shape(self, part: PartHeader, cut: str) -> tuple[int, int]:
        """(rows, width) of the features of a part."""
        architecture = self.half.architecture
        try:
            tokens = architecture.tokens(part.modality, part.layout)
            if tokens > self.max_tokens:
                raise ValueError(f"{tokens} tokens: at most {self.max_tokens} here")
            if cut == "encoder":
                return architecture.encoded_shape(part.modality, part.layout)
        except ValueError as error:
            raise WireError(f"{part.modality}: {str(error)[:200]}") from error
        return tokens, int(self.half.config.get_text_config().hidden_size)

    def check_item(self, item: Item) -> None:
        """WireError for raw input that would take far more memory than its bytes."""
        if item.modality == "audio":
            if len(item.data) > MAX_AUDIO_S * AUDIO_HZ:
                raise WireError(f"audio of {len(item.data)} samples: at most {MAX_AUDIO_S} s")
            return
        height, width = item.data.shape[-3:-1]
        if max(height, width) > min(MAX_SIDE, MAX_ASPECT * min(height, width)):
            raise WireError(
                f"{item.modality} of {height} x {width}: at most {MAX_SIDE} along a side, and "
                f"{MAX_ASPECT} times the other side"
            )
        if item.modality == "video" and len(item.data) > MAX_FRAMES:
            raise WireError(f"video of {len(item.data)} frames: at most {MAX_FRAMES}")

    def check_length(
        self,
        prompt: Sequence[int],
        layouts: Sequence[tuple[str, Layout]],
        max_new_tokens: int,
        *,
        logits: bool = False,
    ) -> None:
        """WireError if prompt, features and answer are longer than the model reads."""
        length = len(prompt) + sum(
            self.half.architecture.tokens(modality, layout) for modality, layout in layouts
        )
        if (total := length + max_new_tokens) > self.max_tokens:
            raise WireError(f"{total} tokens with the answer: at most {self.max_tokens} here")
        wanted = 4 * self.vocabulary * length if logits else 0
        if wanted > self.max_logits_bytes:
            most = self.max_logits_bytes
            raise WireError(f"logits of the prompt are {wanted} bytes: at most {most} here")


def pack(
    request: Request,
    model: str,
    parts: Sequence[Part] | None = None,
    wire: str = "float32",
    *,
    logits: bool = False,
) -> bytes:
    """A request as bytes.

    Parameters
    ----------
    model
        Identity of the model that it is meant for.
    parts
        Features of all items, with one cut; by default the raw items are sent.
    wire
        Type of the features, one of ``WIRE_TYPES``.
    logits
        Whether logits are wanted beside the tokens.
    """
    import torch
    from safetensors.torch import save

    tensors = {"prompt": torch.tensor(list(request.prompt), dtype=torch.int32)}
    if parts is None:
        described = tuple(
            PartHeader(item.modality, rate_hz=float(item.rate_hz)) for item in request.items
        )
        for index, item in enumerate(request.items):
            tensors[f"part{index}"] = torch.from_numpy(item.data).contiguous()
        cut, wire = "input", "raw"
    else:
        cuts = {part.cut for part in parts} or {"projector"}
        if len(cuts) > 1:
            raise ValueError(f"parts are cut at {' and '.join(sorted(cuts))}: expected one cut")
        (cut,) = cuts
        described = tuple(PartHeader(part.modality, **asdict(part.layout)) for part in parts)
        for index, part in enumerate(parts):
            for suffix, tensor in quantised(part.features, wire).items():
                tensors[f"part{index}{suffix}"] = tensor
    header = Header(
        VERSION, request.id, model, cut, wire, described, request.max_new_tokens, logits
    )
    return save(tensors, metadata={"request": json.dumps(asdict(header))})


def unpack(data: bytes, rules: Rules) -> Message:
    """The request that the bytes hold.

    Raises MismatchError if it is for another model, a cut or a modality that is not served, and
    WireError for everything else.
    """
    table, header = read_header(data)
    rules.check(header)
    _check_tensors(table, header, rules)
    tensors = _tensors(data)
    prompt = _prompt(tensors["prompt"], rules)
    if header.cut == "input":
        items = _items(header, tensors)
        for item in items:
            rules.check_item(item)
        return Message(header, prompt, items=items)
    parts = _parts(header, tensors, rules.dtype)
    layouts = [(part.modality, part.layout) for part in parts]
    rules.check_length(prompt, layouts, header.max_new_tokens, logits=header.logits)
    return Message(header, prompt, parts=parts)


def read_parts(data: bytes) -> tuple[Part, ...]:
    """The features in an encoding node's reply, of any shape; WireError if there are none."""
    import torch

    table, header = read_header(data)
    if header.cut == "input":
        raise WireError("raw items instead of features")
    _check_tensors(table, header, None)
    return _parts(header, _tensors(data), torch.float32)


def read_header(data: bytes) -> tuple[dict[str, Any], Header]:
    """The table of tensors, and the header; WireError if they are invalid."""
    if len(data) < 8:
        raise WireError(f"{len(data)} bytes: too short for a header")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WireError(f"a header of {length} bytes: at most {MAX_HEADER_BYTES}")
    if length > len(data) - 8:
        raise WireError(f"truncated: {len(data) - 8} of {length} bytes of the header")
    table = _json(data[8 : 8 + length], "header")
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or set(metadata) != {"request"}:
        raise WireError("no request in the header's metadata")
    if not isinstance(metadata["request"], str):
        raise WireError("the request in the header's metadata is no text")
    return table, _header(_json(metadata["request"], "request"))


def _json(text: bytes | str, what: str) -> dict[str, Any]:
    def no_constant(name: str) -> float:
        raise ValueError(f"{name} is no number here")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        value = json.loads(text, parse_constant=no_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: no valid JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise WireError(f"{what}: expected an object")
    return value


def _header(given: dict[str, Any]) -> Header:
    if given.get("version") != VERSION:
        version = repr(given.get("version"))[:60]
        raise WireError(f"version {version}: this server speaks {VERSION}")
    _check_names(given, Header, "request")
    _check(given["id"], str, "id", is_id)
    _check(given["model"], str, "model")
    _check(given["cut"], str, "cut", lambda cut: cut in CUTS)
    raw = given["cut"] == "input"
    _check(given["wire"], str, "wire", lambda wire: wire in (("raw",) if raw else WIRE_TYPES))
    _check(given["max_new_tokens"], int, "max_new_tokens", lambda number: 1 <= number < 1 << 31)
    _check(given["logits"], bool, "logits")
    _check(given["parts"], list, "parts")
    return Header(**{**given, "parts": tuple(_part(part, raw) for part in given["parts"])})


def _part(given: Any, raw: bool) -> PartHeader:
    _check(given, dict, "part")
    _check_names(given, PartHeader, "part")
    _check(given["modality"], str, "modality", lambda name: name in MODALITIES)
    grid, seconds = given["grid"], given["seconds_per_grid"]
    rate, frames = given["rate_hz"], given["mel_frames"]
    if raw:
        bare = grid is None and seconds is None and frames is None
        _check(rate, float, "rate_hz", lambda rate: bare and 0 < rate < math.inf)
        return PartHeader(**given)
    if rate is not None:
        raise WireError(f"rate_hz={rate!r}: features have none")
    if grid is not None:
        _check(grid, list, "grid", lambda grid: [type(side) for side in grid] == [int] * 3)
    if (grid is not None and given["modality"] == "video") != (seconds is not None):
        raise WireError(f"seconds_per_grid={seconds!r}: a video has it, with its grid")
    if seconds is not None:
        _check(seconds, float, "seconds_per_grid", lambda seconds: 0 < seconds < 1e4)
    if frames is not None:
        _check(frames, int, "mel_frames", lambda frames: 1 <= frames < 1 << 20)
    return PartHeader(**{**given, "grid": None if grid is None else tuple(grid)})


def _check(
    value: Any, kind: type, name: str, right: Callable[[Any], object] = lambda value: True
) -> None:
    if type(value) is not kind or not right(value):
        raise WireError(f"{name}={str(value)[:60]!r}: expected a valid {kind.__name__}")


def _check_names(given: dict[str, Any], kind: Any, what: str) -> None:
    if wrong := set(given) ^ {field.name for field in fields(kind)}:
        raise WireError(f"{what}: fields {', '.join(sorted(wrong))[:100]} missing or unknown")


def is_id(name: str) -> bool:
    """Whether it may name a request: it is echoed in messages and logs, so nothing odd."""
    return 1 <= len(name) <= MAX_ID and name.isascii() and name.isprintable()


def _tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        return load(data)
    except Exception as error:  # whatever the library objects to, the bytes are to blame
        raise WireError(f"not a safetensors message: {error}") from error


def _check_tensors(table: dict[str, Any], header: Header, rules: Rules | None) -> None:
    """WireError unless the tensors are those of the header, each of its type and shape."""
    wanted: dict[str, tuple[str, list[int] | None]] = {"prompt": ("I32", None)}
    for index, part in enumerate(header.parts):
        if header.cut == "input":
            wanted[f"part{index}"] = (_NAMES[np.dtype(RAW[part.modality][0]).name], None)
            continue
        shape = list(rules.shape(part, header.cut)) if rules else None
        wanted[f"part{index}"] = (_NAMES[header.wire], shape)
        if header.wire == "int8":
            wanted[f"part{index}.scale"] = ("F32", [shape[0], 1] if shape else None)
    if wrong := set(table) ^ set(wanted):
        raise WireError(f"tensors {', '.join(sorted(wrong))[:100]} missing or unknown")
    for name, (dtype, shape) in wanted.items():
        entry = table[name]
        _check(entry, dict, name)
        _check(entry.get("shape"), list, f"{name}: shape")
        if entry.get("dtype") != dtype or (shape is not None and entry["shape"] != shape):
            found = f"{entry.get('dtype')} {entry['shape']}"
            raise WireError(f"{name}: {found[:60]}: expected {dtype} {shape or ''}".rstrip())


def _prompt(tensor: Tensor, rules: Rules) -> tuple[int, ...]:
    if tensor.ndim != 1 or not 1 <= len(tensor) <= rules.max_tokens:
        shape = tuple(tensor.shape)
        raise WireError(f"prompt of shape {shape}: expected 1 to {rules.max_tokens} token ids")
    if int(tensor.min()) < 0 or int(tensor.max()) >= rules.vocabulary:
        raise WireError(f"prompt: token ids must lie within 0 and {rules.vocabulary - 1}")
    return tuple(tensor.tolist())


def _items(header: Header, tensors: dict[str, Tensor]) -> tuple[Item, ...]:
    try:
        return tuple(
            Item(part.modality, tensors[f"part{index}"].numpy(), part.rate_hz or 0.0)
            for index, part in enumerate(header.parts)
        )
    except ValueError as error:
        raise WireError(str(error)) from error


def _parts(header: Header, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Part, ...]:
    """Features that are finite, also in the type that the model computes in."""
    parts = []
    for index, part in enumerate(header.parts):
        name = f"part{index}"
        features = dequantised(tensors[name], tensors.get(f"{name}.scale"))
        if not bool(features.to(dtype).isfinite().all()):
            raise WireError(f"{name}: NaN or infinite features, or too large for the model's type")
        parts.append(Part(part.modality, header.cut, features, part.layout))
    return tuple(parts)


def start_of(data: bytes, name: str, **fields: Any) -> pb.Start:
    """The piece that goes before the message ``data``; ``fields`` as in the protocol."""
    return pb.Start(id=name, bytes=len(data), sha256=hashlib.sha256(data).digest(), **fields)


def pieces_of(data: bytes, start: pb.Start) -> Iterator[pb.Piece]:
    """Start and message, piece by piece."""
    yield pb.Piece(start=start)
    for offset in range(0, len(data), PIECE_BYTES):
        yield pb.Piece(data=data[offset : offset + PIECE_BYTES])


def digest_of(tokens: Iterable[int]) -> bytes:
    """SHA-256 of tokens, four bytes each, little-endian."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).digest()


async def read_start(pieces: AsyncIterator[pb.Piece], max_bytes: int, timeout_s: float) -> pb.Start:
    """The first piece; WireError if it is no valid start, TimeoutError if it is late."""
    piece = await _next(pieces, timeout_s)
    if piece is None or piece.WhichOneof("content") != "start":
        raise WireError("the first piece must be a start")
    start: pb.Start = piece.start
    if not is_id(start.id):
        length = len(start.id)
        raise WireError(f"id of {length} characters: expected 1 to {MAX_ID}, printable ASCII")
    if len(start.sha256) != 32:
        raise WireError("sha256: expected 32 bytes")
    if not 8 <= start.bytes <= max_bytes:
        raise WireError(f"a message of {start.bytes} bytes: expected 8 to {max_bytes}")
    return start


async def read_rest(
    pieces: AsyncIterator[pb.Piece], start: pb.Start, timeout_s: float
) -> tuple[bytes, float]:
    """The whole message, and the seconds it took to arrive.

    Raises TimeoutError if it pauses for more than ``timeout_s`` in all, beside what its bytes take
    at the slowest rate; WireError if its length or digest is not as announced.
    """
    begun_s, data = time.perf_counter(), bytearray()
    while len(data) < start.bytes:
        allowed_s = timeout_s + len(data) / SLOWEST_BYTES_S
        piece = await _next(pieces, allowed_s - (time.perf_counter() - begun_s))
        if piece is None:
            raise WireError(f"truncated: {len(data)} of {start.bytes} bytes came")
        if piece.WhichOneof("content") != "data" or not piece.data:
            raise WireError("expected a piece with data")
        data += piece.data
        if len(data) > start.bytes:
            raise WireError(f"more than the {start.bytes} bytes that were announced")
    message = bytes(data)
    if hashlib.sha256(message).digest() != start.sha256:
        raise WireError("the bytes are not those of the digest")
    return message, time.perf_counter() - begun_s


async def _next(pieces: AsyncIterator[pb.Piece], timeout_s: float) -> pb.Piece | None:
    async with asyncio.timeout(timeout_s):
        return await anext(pieces, None)
