"""Starts processes again that ended by themselves, as systemd or Kubernetes do for real."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from mllm_sched.pipeline.processes import ServiceProcess

LOOK_S = 0.1


class Keeper:
    """Keeps processes up while its block lasts.

    Parameters
    ----------
    processes
        By name, running.

    Attributes
    ----------
    restarts
        How often each was started again.
    """

    def __init__(self, processes: Mapping[str, ServiceProcess]) -> None:
        self.restarts: Counter[str] = Counter()
        self._processes = processes
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=pair) for pair in processes.items()
        ]

    def __enter__(self) -> Keeper:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, name: str, process: ServiceProcess) -> None:
        while not self._over.wait(LOOK_S):
            if not process.alive:
                process.kill()  # what is left of it
                process.start()
                self.restarts[name] += 1
