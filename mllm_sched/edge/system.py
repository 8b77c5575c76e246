"""A whole running system on this machine, as child processes: for experiments and tests.

``Supervisor`` starts processes again that ended by themselves, as systemd or Kubernetes would.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mllm_sched.edge.logs import say
from mllm_sched.edge.users import add
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.options import Security
from mllm_sched.pipeline.service import NodeProcess, ServiceProcess

log = logging.getLogger(__name__)

FIRST = 10_000  # below are those that well-known services use
BLOCK = 64  # of a process's own, roughly
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL = 32768  # first of the ports that Linux gives out by itself; other systems begin higher
_given = itertools.count()


def free_port() -> int:
    """A port of the loopback that nothing listens on, another with every call.

    It lies below the ephemeral ports, so that no connection takes it before its service listens, or
    while that is down. Processes begin at different places, so that two hardly get the same.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else EPHEMERAL
    for _ in range(FIRST, end):
        port = FIRST + (os.getpid() * BLOCK + next(_given)) % (end - FIRST)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port from {FIRST} to {end}")


LOOK_S = 0.1
PAUSE_S = 0.5  # after a start that failed


class Supervisor:
    """Keeps processes, given by name, up while its block lasts.

    ``restarts`` counts how often each was started again. One that ends before it listens is tried
    again, for ever.
    """

    def __init__(self, processes: Mapping[str, ServiceProcess]) -> None:
        self.restarts: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=pair) for pair in processes.items()
        ]

    def __enter__(self) -> Supervisor:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, name: str, process: ServiceProcess) -> None:
        while not self._over.wait(LOOK_S):
            if process.alive:
                continue
            process.kill()  # what is left of it
            try:
                process.start()
            except (RuntimeError, OSError) as error:
                say(log, "start-failed", "warning", process=name, why=str(error))
                self._over.wait(PAUSE_S)
            else:
                self.restarts[name] += 1


FRONT = "front"


class LocalSystem:
    """An LLM server, edge agents, and a front if it is wanted, each in a process of its own.

    Everything is written into one folder: configurations, users, journals. Ports of the loopback
    are chosen once, so that a process that was killed comes back at the same address.

    Parameters
    ----------
    folder
        Made if it is missing. Journals that lie there already are gone on with.
    agents
        Settings of every agent, by name, as in its YAML file; what is left out here is filled in.
    users
        Who may ask, with their limits; anybody, as one user, if there is none.
    tls
        ``certificate``, ``key`` and ``authority``, PEM files of every process and every client
        here; the certificate must be of 127.0.0.1. In the clear by default.

    Examples
    --------
    >>> agents = {"edge-1": {"scheduler": {"limit_s": 0.2}}}
    >>> with LocalSystem(folder, agents) as system:  # doctest: +SKIP
    ...     with system.client() as client:
    ...         answer = client.ask(data, request.id, deadline_s=10)
    """

    def __init__(
        self,
        folder: str | Path,
        agents: Mapping[str, Mapping[str, Any]],
        *,
        model: str = "small-llava",
        front: bool = False,
        users: Mapping[str, Mapping[str, Any]] | None = None,
        tls: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self._tls, port = model, dict(tls or {}), free_port()
        files = [text for name, file in self._tls.items() for text in (f"--{name}", str(file))]
        self.server = NodeProcess("serve-llm", "--model", model, *files, port=port)
        self.llm = f"127.0.0.1:{port}"  # for the agents; may be set to a link before the start
        self.tokens: dict[str, str] = {}  # of the users, and of the front
        self._users_file = self._write_users(users, front) if users else None
        self._addresses = {name: f"127.0.0.1:{free_port()}" for name in [*agents, FRONT]}
        # Where each process is scraped.
        self.metrics = {name: f"127.0.0.1:{free_port()}" for name in [*agents, FRONT]}
        self._settings = dict(agents)
        self.agents = {name: self._process("agent", name) for name in agents}
        self.front = self._process("front", FRONT) if front else None

    def __enter__(self) -> LocalSystem:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where users ask: the front, or the first agent."""
        return self._addresses[FRONT if self.front else next(iter(self.agents))]

    @property
    def processes(self) -> dict[str, ServiceProcess]:
        """By name; ``server`` is that of the LLM."""
        front = {FRONT: self.front} if self.front else {}
        return {"server": self.server, **self.agents, **front}

    def journal(self, name: str) -> Path:
        """Of an agent."""
        return self.folder / f"{name}.journal"

    def client(self, user: str = "", agent: str = "") -> EdgeClient:
        """A client for a user, of the whole system or of one agent."""
        address = self._addresses[agent] if agent else self.address
        return EdgeClient(address, Security(self.tokens.get(user), **self._tls))

    def start(self) -> LocalSystem:
        """Start everything and wait until it listens."""
        loading = [self.server, *self.agents.values()]
        try:
            for name in self.agents:
                self._write_agent(name)
            for process in loading:
                process.begin()
            for process in loading:
                process.wait()
            if self.front:
                self._write_front()
                self.front.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything in order: those who ask before those who are asked."""
        for process in reversed(list(self.processes.values())):
            process.stop()

    def _process(self, command: str, name: str) -> ServiceProcess:
        file = str(self.folder / f"{name}.yaml")
        return ServiceProcess(sys.executable, "-m", "mllm_sched.cli", command, file)

    def _write_users(self, users: Mapping[str, Mapping[str, Any]], front: bool) -> Path:
        file = self.folder / "users.yaml"
        file.unlink(missing_ok=True)
        for name, limits in users.items():
            self.tokens[name] = add(file, name, **limits)
        if front:
            self.tokens[FRONT] = add(file, FRONT, front=True)
            token = self.folder / "front.token"
            token.unlink(missing_ok=True)
            token.touch(mode=0o600)
            token.write_text(self.tokens[FRONT])
        return file

    def _common(self, name: str) -> dict[str, Any]:
        common: dict[str, Any] = {
            "name": name,
            "listen": self._addresses[name],
            "metrics": self.metrics[name],
        }
        if self._users_file:
            common["users_file"] = str(self._users_file)
        if self._tls:
            common["tls"] = {name: str(file) for name, file in self._tls.items()}
        return common

    def _write_agent(self, name: str) -> None:
        given = {
            **self._common(name),
            "server": self.llm,
            "model": self.model,
            "journal": {"path": str(self.journal(name))},
            **self._settings[name],
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(given))

    def _write_front(self) -> None:
        given = {**self._common(FRONT), "agents": [self._addresses[name] for name in self.agents]}
        if self._users_file:
            given["token_file"] = str(self.folder / "front.token")
        (self.folder / f"{FRONT}.yaml").write_text(yaml.safe_dump(given))
