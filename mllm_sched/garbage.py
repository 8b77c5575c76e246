"""Python's search for garbage, kept away from what is loaded once and used to the end.

PyTorch and transformers are some 400,000 objects. To look through them takes a quarter of a second,
over and over while they are loaded, then in the middle of a request, and once more at the end.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """A block in which nothing is searched, also as a decorator; afterwards it is as before.

    Examples
    --------
    >>> with uncollected():
    ...     gc.isenabled()
    False
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def all_is_loaded() -> None:
    """What there is by now is never searched again; to be called once a service is ready."""
    gc.freeze()
