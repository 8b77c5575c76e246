"""Python's search for garbage, kept away from what is loaded once and used to the end.

PyTorch and transformers are hundreds of thousands of objects. They are searched through several
times while they are loaded, in the middle of requests, and once more when the process ends.
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
    """A block in which no thread searches; also a decorator. Afterwards it is as it was before.

    Examples
    --------
    >>> with uncollected():
    ...     gc.isenabled()
    False
    """
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
    """Search once more, then never again through what there is by now: a service is ready."""
    gc.collect()
    gc.freeze()
