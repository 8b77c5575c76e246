"""How a process ends: with its parent, and on a signal as on Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time

STEP_S = 0.5  # how often an orphan looks for its parent


def end_with(parent: int) -> None:
    """End this process once it is no longer a child of ``parent``, whatever it is then doing.

    Parameters
    ----------
    parent
        Process id of whoever started this one.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(STEP_S)
    os._exit(1)  # also in the middle of a call that holds the main thread


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, so that what was started is ended in order.

    A signal that is ignored, as SIGHUP is under ``nohup``, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
