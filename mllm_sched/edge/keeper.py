"""Starts processes again that ended by themselves, as systemd or Kubernetes do for real."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from mllm_sched.edge.logs import say
from mllm_sched.pipeline.processes import ServiceProcess

log = logging.getLogger(__name__)

LOOK_S = 0.1
PAUSE_S = 0.5  # after a start that failed


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
    failed_starts
        How often each ended before it listened; it is tried again, for ever.
    """

    def __init__(self, processes: Mapping[str, ServiceProcess]) -> None:
        self.restarts: Counter[str] = Counter()
        self.failed_starts: Counter[str] = Counter()
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
                self._start(name, process)

    def _start(self, name: str, process: ServiceProcess) -> None:
        process.kill()  # what is left of it
        try:
            process.start()
        except (RuntimeError, OSError) as error:
            self.failed_starts[name] += 1
            say(log, "start-failed", "warning", process=name, why=str(error))
            self._over.wait(PAUSE_S)
        else:
            self.restarts[name] += 1
