"""What travels between an edge agent and a vLLM server: a chat completion with embeddings.

As vLLM documents it: "Multimodal Inputs", part "Online Serving / Embedding Inputs"
(https://docs.vllm.ai/en/latest/features/multimodal_inputs/), and the fields of
``ChatCompletionRequest`` and ``ChatCompletionStreamResponse`` (vllm/entrypoints/openai/
chat_completion/protocol.py), both as documented in November 2026. Each item is a content part of
its own, with a tensor of shape (tokens, width of the LLM), saved by ``torch.save`` and written in
base64; a model that needs the item's grid for its positions, as Qwen2-VL does, gets an object of
two tensors. The pages up to vLLM 0.13 asked for (1, tokens, width) instead.

We write tensors and read none: what comes back is JSON, checked against the fields below.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from mllm_sched.pipeline.requests import Part
from mllm_sched.pipeline.wire import quantised

KINDS = {"image": "image_embeds", "audio": "audio_embeds"}
"""Content parts of embeddings, by modality. The chat API has none for video."""
WIRE_TYPES = ("float32", "float16", "bfloat16")
LINE_BYTES = 1 << 20
DONE = "[DONE]"


class StreamError(ValueError):
    """A server's answer that is not what vLLM documents."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes
    ----------
    text
        As the server decoded it.
    tokens
        Ids of its tokens; none from a server that does not tell them.
    finish
        With the last piece: ``stop``, or ``length`` if the answer was cut at its longest.
    prompt_tokens, completion_tokens
        As the server counted them, at the very end.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Error(BaseModel):
    message: str
    code: int | str | None = None


class _Event(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class ServerError(RuntimeError):
    """An error that the server told within the stream; ``status`` as in HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def base64_of(tensor: Tensor) -> str:
    """A tensor as ``torch.load(..., weights_only=True)`` takes it, in base64.

    Examples
    --------
    >>> data = base64.b64decode(base64_of(torch.tensor([1, 4, 4])))
    >>> torch.load(io.BytesIO(data), weights_only=True).tolist()
    [1, 4, 4]
    """
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().clone(), buffer)  # a view would bring all that it views
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def content_of(part: Part, wire: str) -> dict[str, Any]:
    """The content part of one item.

    No ``uuid`` is sent with it: the server would take it for the item's identity in a cache that
    all share, and find it by its content without.

    Raises
    ------
    ValueError
        For a modality without such a part, features not cut at the projector, not of shape
        (tokens, width), not finite, or of a type that vLLM has no use for.
    """
    if part.modality not in KINDS:
        raise ValueError(f"{part.modality}: vLLM's chat takes embeddings of {' and '.join(KINDS)}")
    if part.cut != "projector":
        raise ValueError(f"features cut at {part.cut}: vLLM takes them as its LLM does, projected")
    shape = tuple(part.features.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"features of shape {shape}: expected (tokens, width)")
    if not bool(part.features.isfinite().all()):
        raise ValueError(f"{part.modality}: NaN or infinite features")
    if wire not in WIRE_TYPES:
        raise ValueError(f"wire={wire!r}: vLLM takes {', '.join(WIRE_TYPES)}")
    kind, features = KINDS[part.modality], base64_of(quantised(part.features, wire)[""])
    if part.layout.grid is None:
        return {"type": kind, kind: features}
    grid = base64_of(torch.tensor(part.layout.grid))
    return {"type": kind, kind: {kind: features, f"{part.modality}_grid_thw": grid}}


def body_of(
    model: str,
    prompt: str,
    parts: Sequence[Part],
    max_new_tokens: int,
    *,
    name: str,
    wire: str,
    salt: str = "",
) -> bytes:
    """A request for a greedy, streamed answer: items first, then the text.

    Parameters
    ----------
    model
        As the server calls it.
    name
        The request's id in the server's logs.
    salt
        Of the prefix cache (``cache_salt``): whoever does not know it cannot find out by timing
        what others ask. None by default.

    Raises ValueError as ``content_of``, and if there is nothing to answer or no token to answer in.
    """
    if not prompt.strip():
        raise ValueError("prompt: expected text; the chat's template is applied by the server")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected 1 or more")
    content = [*(content_of(part, wire) for part in parts), {"type": "text", "text": prompt}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": max_new_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "request_id": name,
    }
    return json.dumps(body | ({"cache_salt": salt} if salt else {})).encode()


def data_of(pieces: Iterable[bytes]) -> Iterator[str]:
    r"""The data of each server-sent event, up to ``[DONE]``, which is not among them.

    Raises StreamError for a line that is neither data, a comment nor empty, or is far too long;
    EOFError if the stream ends before it is done.

    Examples
    --------
    >>> list(data_of([b"data: {1", b"}\n\n: hello\n\ndata: [DO", b"NE]\n\n"]))
    ['{1}']
    """
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        for line in (line.strip() for line in lines):
            if not line or line.startswith(b":"):
                continue
            if not line.startswith(b"data:"):
                raise StreamError(f"{line[:60]!r}: expected a line of data")
            data = line[5:].strip().decode("utf-8", "replace")
            if data == DONE:
                return
            yield data
        if len(left) > LINE_BYTES:
            raise StreamError(f"a line beyond {LINE_BYTES} bytes")
    raise EOFError("the stream ended before it was done")


def chunk_of(data: str) -> Chunk:
    """One event of the stream.

    Raises StreamError if it is not as documented, ServerError if it tells an error.

    Examples
    --------
    >>> chunk_of('{"choices": [{"index": 0, "delta": {"content": "Hi"}, "token_ids": [7]}]}')
    Chunk(text='Hi', tokens=(7,), finish='', prompt_tokens=None, completion_tokens=None)
    """
    try:
        event = _Event.model_validate_json(data)
    except ValidationError as error:
        raise StreamError(f"{data[:60]!r}: {error.errors()[0]['msg']}") from error
    if event.error:
        status = event.error.code if isinstance(event.error.code, int) else 500
        raise ServerError(event.error.message, status)
    if len(event.choices) > 1:
        raise StreamError(f"{len(event.choices)} answers at once: one was asked for")
    usage = event.usage
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    if not event.choices:
        return Chunk("", (), "", *counts)
    (choice,) = event.choices
    tokens = tuple(choice.token_ids or ())
    return Chunk(choice.delta.content or "", tokens, choice.finish_reason or "", *counts)


def error_of(body: bytes) -> str:
    """What an error's body says: vLLM's object, its older form, or whatever else it is.

    Examples
    --------
    >>> error_of(b'{"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}')
    'no such model'
    >>> error_of(b'{"error": "Unauthorized"}')
    'Unauthorized'
    """
    try:
        told = json.loads(body)
        told = told.get("error", told)
        text = told if isinstance(told, str) else told["message"]
    except (ValueError, AttributeError, KeyError, TypeError):
        text = body.decode("utf-8", "replace").strip() or "no reason given"
    return str(text)[:500]
