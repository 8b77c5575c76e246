"""A process that ends with its parent."""

from __future__ import annotations

import os
import threading
import time

STEP_S = 0.5  # how often an orphan looks for its parent


def end_with(parent: int) -> None:
    """End this process once it is no longer a child of process ``parent``, whatever it is doing."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(STEP_S)
    os._exit(1)  # also in the middle of a call that holds the main thread
