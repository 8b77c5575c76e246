"""An encoder by name on random input, run by ONNX Runtime in a child process: for profiling."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mllm_sched import extras, paths
from mllm_sched.harness.subprocess_worker import (
    CALL_TIMEOUT_S,
    EncoderServer,
    EncoderWorker,
    serve,
)
from mllm_sched.pipeline.encoders import encoder_spec
from mllm_sched.pipeline.onnx import PACKAGES


class ExampleEncoder(EncoderWorker):
    """The parent's side: an encoder of ``ENCODERS``, or ``hf:PATH_OR_HUB_ID`` for a checkpoint.

    ValueError for an unknown one.
    """

    def __init__(self, name: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        super().__init__([sys.executable, "-m", __name__], timeout_s=timeout_s)
        self.name = name
        self.modalities = {name: encoder_spec(name).modality}

    def open(self, how: Mapping[str, Any], items: Sequence[Any] = ()) -> dict[str, Any]:
        """Export and open it on a component; see ``pipeline.onnx.open_encoder``.

        Raises MissingPackage if what this takes is not installed.
        """
        if items:
            raise ValueError("this device encodes random input; open it with model=... for items")
        extras.require(*PACKAGES)
        what = {"encoder": self.name, "seed": 0, "cache": str(paths.CACHE), "batch": 1, **how}
        facts: dict[str, Any] = self.ask({"do": "open", **what}, self.open_timeout_s)
        return facts


class ExampleServer(EncoderServer):
    """The child's side: encoders that were opened once stay open."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[str, tuple[Callable[[], object], dict[str, Any]]] = {}

    def open(
        self, request: dict[str, Any], data: bytes
    ) -> tuple[Callable[[], object], dict[str, Any]]:
        """See ``pipeline.onnx.open_encoder``."""
        key = json.dumps(request, sort_keys=True)
        if key not in self._opened:
            from mllm_sched.pipeline.onnx import open_encoder  # a second to import

            self._opened[key] = open_encoder(**request)
        return self._opened[key]


if __name__ == "__main__":
    serve(lambda: ExampleServer().answer)
