"""Python's garbage collection, kept away from what is loaded once and used to the end.

PyTorch and transformers are hundreds of thousands of objects. They would be searched several times
while they are loaded, in the middle of requests, and once more when the process ends.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_blocks = 0  # entered and not left
_before = True  # whether garbage was searched for when the first of them was entered


@contextmanager
def uncollected() -> Iterator[None]:
    """A block without garbage collection in any thread; also a decorator. It is then as before."""
    global _blocks, _before
    with _lock:
        if not _blocks:
            _before = gc.isenabled()
            gc.disable()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks and _before:
                gc.enable()


def leave_out_loaded() -> None:
    """Collect once more, then never again through what there is by now: a service is ready."""
    gc.collect()
    gc.freeze()
