"""An adapter: a vLLM server answers in place of our LLM server.

**It never ran against a real vLLM.** It is tested against an imitation of the endpoint that vLLM
documents; what is sent and read stands in ``vllm_wire``. The server must be started for it::

    vllm serve MODEL --enable-mm-embeds --limit-mm-per-prompt '{"image": 4}' --api-key ...

Who may reach such a server is the operator's care. vLLM warns that its engine may crash on
embeddings of a wrong shape and that the flag is for trusted users alone ("Multimodal Inputs"), and
it reads them by ``torch.load``: CVE-2025-62164, of prompt embeddings, let a malformed tensor write
beyond its memory (0.10.2 and later), CVE-2026-56340 the same by multimodal embeddings (before
0.13.0), CVE-2026-73557 once more around the check (0.20.2rc0 to 0.26.0). So users send raw items
to an agent, agents alone send embeddings, which they made themselves, and nobody else has the key
or a way to the port. The key guards ``/v1`` and little beyond: other endpoints are open
(https://docs.vllm.ai/en/latest/usage/security/), so a proxy or a firewall stands before them.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import grpc
import httpx

from mllm_sched.edge.vllm_http import cut_off, http_client, read_all
from mllm_sched.edge.vllm_wire import (
    Chunk,
    ServerError,
    StreamError,
    body_of,
    chunk_of,
    data_of,
    error_of,
)
from mllm_sched.pipeline.edge_client import LONGEST_PAUSE_S, PAUSE_S
from mllm_sched.pipeline.node_errors import (
    DeadlineMissed,
    NodeBusy,
    NodeError,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.options import MESSAGE_BYTES
from mllm_sched.pipeline.requests import Part
from mllm_sched.pipeline.security import Security

COMPLETIONS = "/v1/chat/completions"
AGAIN = (502, 503, 504)  # not there, or not yet; 500 is not among them: it may be our tensors' work
ERROR_BYTES = 1 << 16
Status = grpc.StatusCode
_STATUS = {
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.NOT_FOUND,
    429: Status.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True)
class TextAnswer:
    """An answer in text; ``tokens`` are its ids, if the server tells them.

    ``finish`` is ``stop``, or ``length`` for one that was cut at its longest.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    total_s: float
    first_token_s: float
    tries: int = 1


class VLLMClient:
    """A connection to a vLLM server; may be used from several threads.

    Parameters
    ----------
    url
        ``http://HOST:PORT`` or ``https://HOST:PORT``.
    model
        As the server calls it (``--served-model-name``). Its encoder and projector must be those
        that the features come from; nothing on the server checks more than their shape.
    security
        The token is the server's ``--api-key``; certificates are those of mutual TLS.
    wire
        Type of the features as they are sent; the server turns them into its own.
    max_bytes
        Of one request.
    is_open
        Whether to speak in the clear to another machine.

    Examples
    --------
    >>> with VLLMClient("http://127.0.0.1:8000", "llava-hf/llava-1.5-7b-hf") as client:
    ...     answer = client.ask(parts, "What is this?", 64, "id", 10)  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        model: str,
        security: Security = Security(),
        *,
        wire: str = "bfloat16",
        max_bytes: int = MESSAGE_BYTES,
        is_open: bool = False,
    ) -> None:
        self._client = http_client(url, security, is_open=is_open)
        self.url, self.model, self.wire, self.max_bytes = url, model, wire, max_bytes

    def __enter__(self) -> VLLMClient:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back. Closing twice does nothing."""
        self._client.close()

    def ask(
        self,
        parts: Sequence[Part],
        prompt: str,
        max_new_tokens: int,
        name: str,
        deadline_s: float,
        *,
        salt: str = "",
    ) -> TextAnswer:
        """Send features and wait for the answer.

        Parameters
        ----------
        parts
            Features cut at the projector, (tokens, width) each; they stand before the text.
        prompt
            Text; the server applies the model's chat template.
        name
            The request's id, for the server's logs.
        deadline_s
            Seconds until the answer is worthless.
        salt
            See ``body_of``: one of each user keeps users apart in the server's prefix cache.

        Raises
        ------
        ValueError
            If it cannot be said in vLLM's protocol.
        RequestRefused
            If the server will not serve it, it is too large, or the answer is not as documented.
        NodeBusy
            If it cannot now.
        NodeUnreachable, DeadlineMissed
            If the deadline passed, or the answer broke off.
        """
        begun_s, first_s, tries = time.perf_counter(), 0.0, 1
        text, finish, tokens = "", "", list[int]()
        pieces = self.events(parts, prompt, max_new_tokens, name, deadline_s, salt=salt)
        for chunk, tries in pieces:  # noqa: B007 (used below)
            first_s = first_s or time.perf_counter() - begun_s
            text += chunk.text
            tokens += chunk.tokens
            finish = chunk.finish or finish
        total_s = time.perf_counter() - begun_s
        return TextAnswer(text, tuple(tokens), finish, total_s, first_s, tries)

    def events(
        self,
        parts: Sequence[Part],
        prompt: str,
        max_new_tokens: int,
        name: str,
        deadline_s: float,
        *,
        salt: str = "",
    ) -> Iterator[tuple[Chunk, int]]:
        """Pieces of the answer as they come, each with the number of the try. Raises as ``ask``.

        A chat completion is generated anew whenever it is asked for. So a request is sent again
        only as long as nothing of its answer came; later a broken stream is an error.
        """
        if not deadline_s > 0:
            raise ValueError(f"deadline_s={deadline_s}: expected seconds above 0")
        ends_s, begun = time.monotonic() + deadline_s, False
        for tries in itertools.count(1):
            id_ = f"{name}-{tries}"  # of an earlier try the server may not have let go
            body = body_of(
                self.model, prompt, parts, max_new_tokens, name=id_, wire=self.wire, salt=salt
            )
            try:
                for chunk in self._attempt(body, ends_s, tries):
                    begun = True
                    yield chunk, tries
                return
            except _Broken as error:
                details = str(error)
            if begun:
                message = f"{self.url}: the answer broke off; it is not asked for twice: {details}"
                raise NodeUnreachable(message, Status.UNAVAILABLE, tries)
            pause_s = min(LONGEST_PAUSE_S, PAUSE_S * 2**tries) * random.uniform(0.5, 1.0)
            if time.monotonic() + pause_s >= ends_s:
                message = f"{self.url}: no answer in {deadline_s:g} s, {tries} tries: {details}"
                raise NodeUnreachable(message, Status.UNAVAILABLE, tries)
            time.sleep(pause_s)

    def _attempt(self, body: bytes, ends_s: float, tries: int) -> Iterator[Chunk]:
        """One request; _Broken if it may be sent again."""
        if len(body) > self.max_bytes:
            message = f"{len(body)} bytes of embeddings in base64: the limit is {self.max_bytes}"
            raise RequestRefused(message, Status.INVALID_ARGUMENT, tries)
        left_s = max(0.001, ends_s - time.monotonic())
        headers = {"content-type": "application/json"}
        try:
            with self._client.stream(
                "POST", COMPLETIONS, content=body, headers=headers, timeout=left_s
            ) as response:
                with cut_off(response, ends_s - time.monotonic()):
                    if response.status_code != 200:
                        told = error_of(read_all(response, ERROR_BYTES))
                        raise self._error(response.status_code, told, tries)
                    yield from _chunks(response)
        except ServerError as error:
            raise self._error(error.status, str(error), tries) from None
        except StreamError as error:
            raise RequestRefused(f"{self.url}: {error}", Status.DATA_LOSS, tries) from error
        except (httpx.TransportError, EOFError, OSError) as error:
            unheard = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if time.monotonic() < ends_s or unheard:
                raise _Broken(str(error) or type(error).__name__) from error
            message = f"{self.url}: no complete answer at the deadline"
            raise DeadlineMissed(message, Status.DEADLINE_EXCEEDED, tries) from error

    def _error(self, status: int, told: str, tries: int) -> NodeError | _Broken:
        message = f"{self.url}: {told} (HTTP {status})"
        if status in AGAIN:
            return _Broken(message)
        usual = Status.INTERNAL if status >= 500 else Status.INVALID_ARGUMENT
        kind = NodeBusy if status == 429 else RequestRefused
        return kind(message, _STATUS.get(status, usual), tries)


class _Broken(Exception):
    """A try that came to nothing, and not by the request's fault."""


def _chunks(response: httpx.Response) -> Iterator[Chunk]:
    """What the answer consists of, without events that say nothing of it."""
    finish = ""
    for data in data_of(response.iter_bytes()):
        chunk = chunk_of(data)
        finish = chunk.finish or finish
        if chunk != Chunk():
            yield chunk
    if finish not in ("stop", "length"):
        raise StreamError(f"an answer that ended by {finish or 'nothing'!r}, not stop or length")
