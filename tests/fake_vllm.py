"""An imitation of the endpoint that vLLM documents, as strict as a test can be; not vLLM.

It takes ``POST /v1/chat/completions`` as the pages named in ``mllm_sched/edge/vllm_wire.py`` say,
reads embeddings as vLLM does, checks their shapes, and streams an answer. ``fault`` makes it fail.
"""

import base64
import io
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

MODEL, KEY, WIDTH = "llava-hf/llava-1.5-7b-hf", "only-for-tests", 128
ANSWER = ("A ", "grey ", "square", ".")
REQUIRED = {"model", "messages", "max_completion_tokens", "temperature", "stream"}
OPTIONAL = {"stream_options", "return_token_ids", "request_id", "cache_salt"}


class Refused(Exception):
    def __init__(self, status, message, kind="BadRequestError"):
        super().__init__(message)
        self.status, self.kind = status, kind


class FakeVLLM(ThreadingHTTPServer):
    """A server on the loopback; a context manager.

    ``fault`` is a function of the handler that is called before the answer, or in its place if it
    returns True; ``seen`` are the requests that were in order, with their tensors.
    """

    daemon_threads = True

    def __init__(self, *, key=KEY, embeds=True, grid=False, fault=None, first_s=0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.embeds, self.grid = key, embeds, grid
        self.fault, self.first_s = fault, first_s
        self.seen, self.calls, self.wrong = [], 0, []
        self.stopped = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        if self.wrong:
            raise self.wrong[0]

    def handle_error(self, *_):
        """A client that left is none of its troubles; a request out of order is."""
        if not isinstance(error := sys.exception(), OSError):
            self.wrong.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.calls += 1
        data = self.rfile.read(int(self.headers["content-length"]))
        try:
            body, tensors = self.checked(data)
        except Refused as error:
            told = {"message": str(error), "type": error.kind, "param": None, "code": error.status}
            body = {"error": told} if error.status != 401 else {"error": str(error)}
            return self.tell(error.status, body)
        self.server.seen.append((body, tensors))
        if self.server.fault and self.server.fault(self):
            return None
        return self.answer(body)

    def tell(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def checked(self, data):
        """The body and its tensors; Refused as vLLM refuses."""
        if self.path != "/v1/chat/completions":
            raise Refused(404, "Not Found", "NotFoundError")
        if self.server.key and self.headers["authorization"] != f"Bearer {self.server.key}":
            raise Refused(401, "Unauthorized")
        body = json.loads(data)
        assert set(body) >= REQUIRED and set(body) <= REQUIRED | OPTIONAL, set(body)
        assert body["stream"] is True and body["temperature"] == 0
        assert isinstance(body["max_completion_tokens"], int)
        if body["model"] != MODEL:
            raise Refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        (message,) = body["messages"]
        assert message["role"] == "user"
        *items, text = message["content"]
        assert set(text) == {"type", "text"} and text["type"] == "text"
        return body, [self.embedding(item) for item in items]

    def embedding(self, item):
        kind = item["type"]
        if kind not in ("image_embeds", "audio_embeds") or set(item) - {"uuid"} != {"type", kind}:
            raise Refused(400, f"Unknown part type: {kind}")
        if not self.server.embeds:
            raise Refused(400, f"You must set `--enable-mm-embeds` to input `{kind}`")
        given = item[kind] if isinstance(item[kind], dict) else {kind: item[kind]}
        tensors = {name: _loaded(text) for name, text in given.items()}
        features = tensors[kind]
        if features.ndim != 2 or features.shape[1] != WIDTH or not features.is_floating_point():
            raise Refused(400, f"embeddings of shape {tuple(features.shape)}")
        if self.server.grid:
            grid = tensors["image_grid_thw"]
            assert grid.shape == (3,) and not grid.is_floating_point()
            assert len(features) == int(grid.prod()) // 4
        return tensors

    def begin(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, **fields):
        said = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, **fields}
        self.send(f"data: {json.dumps(said)}\n\n")

    def choice(self, finish=None, **delta):
        ids = delta.pop("ids", None)
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "token_ids": ids}
        self.event(choices=[choice])

    def answer(self, body):
        words = ANSWER[: body["max_completion_tokens"]]
        self.begin()
        self.choice(role="assistant", content="")
        self.server.stopped.wait(self.server.first_s)
        for index, word in enumerate(words):
            self.choice(content=word, ids=[100 + index])
        self.choice("stop" if words == ANSWER else "length", content="")
        usage = {"prompt_tokens": 20, "completion_tokens": len(words), "total_tokens": 20}
        self.event(choices=[], usage=usage)
        self.send("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def drop(self):
        """Break the connection, as a process that dies does."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        return True


def _loaded(text):
    """As vLLM loads an embedding (vllm/multimodal/media/image.py)."""
    with torch.sparse.check_sparse_tensor_invariants():
        buffer = io.BytesIO(base64.b64decode(text, validate=True))
        return torch.load(buffer, weights_only=True).to_dense()


def busy(status, body, times=10**9):
    """A fault: so many calls are turned away."""
    left = [times]

    def fault(handler):
        left[0] -= 1
        return left[0] >= 0 and (handler.tell(status, body) or True)

    return fault


def dropped_before_any_token(handler):
    """A fault: the first call breaks after the role."""
    if handler.server.calls > 1:
        return False
    handler.begin()
    handler.choice(role="assistant", content="")
    return handler.drop()


def dropped_amid(handler):
    """A fault: the stream breaks after a token."""
    handler.begin()
    handler.choice(content=ANSWER[0], ids=[100])
    return handler.drop()


def says(*texts):
    """A fault: these lines instead of an answer."""

    def fault(handler):
        handler.begin()
        for text in texts:
            handler.send(text)
        handler.wfile.write(b"0\r\n\r\n")
        return True

    return fault


def endless(handler):
    """A fault: a token now and then, for ever."""
    handler.begin()
    for _ in range(1000):
        if handler.server.stopped.wait(0.05):
            break
        handler.choice(content="and ", ids=[7])
    return handler.drop()


def slow_to_answer(seconds):
    """A fault: nothing at all for a while."""

    def fault(handler):
        time.sleep(seconds)
        return handler.drop()

    return fault
