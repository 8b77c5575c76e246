"""A process that ends with its parent, and whose garbage collector leaves loaded models alone."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STEP_S = 0.5  # how often an orphan looks for its parent


def end_with(parent: int) -> None:
    """End this process once it is no longer a child of process ``parent``, whatever it is doing."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(STEP_S)
    os._exit(1)  # also in the middle of a call that holds the main thread


@contextmanager
def uncollected() -> Iterator[None]:
    """A block without garbage collection, which would search through a model as it is loaded.

    Of blocks in several threads the first to end turns it on again.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def leave_out_loaded() -> None:
    """Collect once more, then never again through what there is by now: a service is ready."""
    gc.collect()
    gc.freeze()
