"""One model on one device: work is done by a single thread, in the order in which it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, the seconds it took, and the seconds it waited for other work before."""

    result: Result
    busy_s: float
    wait_s: float


class Compute:
    """The thread. Requests take turns token by token, so none waits for another's whole answer."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def run(self, work: Callable[[], Result], slowdown: float = 1.0) -> Done[Result]:
        """Do the work.

        Parameters
        ----------
        slowdown
            At least 1. A slower device is imitated by a pause after the work, so that it takes
            that many times as long; what it then takes is *scaled*, not measured.
        """
        asked_s = time.perf_counter()

        def timed() -> Done[Result]:
            begun_s = time.perf_counter()
            result = work()
            busy_s = time.perf_counter() - begun_s
            time.sleep((slowdown - 1.0) * busy_s)
            return Done(result, time.perf_counter() - begun_s, begun_s - asked_s)

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    def close(self) -> None:
        """End the thread once the work at hand is done."""
        self._thread.shutdown(wait=True, cancel_futures=True)
