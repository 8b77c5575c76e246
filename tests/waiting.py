"""Waiting in tests for what another thread or process does."""

import time


def until(holds, why=lambda: "", within_s=60.0):
    """Wait until something holds, and return it; AssertionError says why if it never does."""
    ends_s = time.monotonic() + within_s
    while not (value := holds()):
        assert time.monotonic() < ends_s, why()
        time.sleep(0.05)
    return value
