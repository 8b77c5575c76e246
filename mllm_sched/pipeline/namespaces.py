"""A link through the kernel: a network namespace, a veth pair, and ``tc`` on both of its ends.

It needs root, iproute2, and a kernel that knows how; ``missing`` tells by trying. The user-space
``Link`` needs nothing, and this one is there to check it against a real network stack. The
loopback device itself is never shaped.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mllm_sched.pipeline.link import BURST_BYTES, Passed

QUEUE_MS = 200  # what tbf lets wait before it drops: a short uplink buffer
PORT = 50051


class NamespaceError(RuntimeError):
    """This machine cannot make such a link; the message says why."""


class NamespaceLink:
    """A namespace behind a shaped veth pair, there within a ``with`` block.

    Parameters
    ----------
    up_mbit_s, down_mbit_s
        Rate into the namespace, and out of it.
    delay_s
        One way, the same for both; needs the kernel's ``netem``.
    port
        That the node in the namespace listens on.

    Raises
    ------
    NamespaceError
        On entering, if root, iproute2 or a part of the kernel is missing.

    Examples
    --------
    >>> with NamespaceLink(10, 10) as link:  # doctest: +SKIP
    ...     node = NodeProcess("--open", "--host", link.host, port=link.port, inside=link.inside)
    """

    def __init__(
        self, up_mbit_s: float, down_mbit_s: float, *, delay_s: float = 0.0, port: int = PORT
    ) -> None:
        for name, rate in (("up_mbit_s", up_mbit_s), ("down_mbit_s", down_mbit_s)):
            if not 0 < rate < float("inf"):
                raise ValueError(f"{name}={rate}: expected above 0")
        if not 0 <= delay_s < float("inf"):
            raise ValueError(f"delay_s={delay_s}: expected 0 or more")
        self._rates, self._delay_s, self.port = (up_mbit_s, down_mbit_s), delay_s, port
        self._name = f"mllm{os.getpid()}"
        self._near, self._far = f"{self._name}a", f"{self._name}b"
        self._ends = _ends(os.getpid())

    @property
    def inside(self) -> Sequence[str]:
        """Begins a command that is to run in the namespace."""
        return ("ip", "netns", "exec", self._name)

    @property
    def host(self) -> str:
        """Address of the namespace's end."""
        return self._ends[1]

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the node in the namespace."""
        return f"{self.host}:{self.port}"

    def passed(self) -> Passed:
        """Bytes through the device so far, headers of all layers among them."""
        counters = Path("/sys/class/net") / self._near / "statistics"
        up, down = (int((counters / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
        return Passed(up, down)

    def __enter__(self) -> NamespaceLink:
        if os.geteuid() != 0:
            raise NamespaceError("network namespaces need root")
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                raise NamespaceError(f"no program {program}: install iproute2")
        try:
            self._build()
        except NamespaceError:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the pair and the namespace. Closing twice does nothing."""
        for command in (("link", "del", self._near), ("netns", "del", self._name)):
            with suppress(NamespaceError):  # it was never made, or is gone
                _call("ip", *command)

    def _build(self) -> None:
        near, far, inside = self._near, self._far, self.inside
        _call("ip", "netns", "add", self._name)
        _call("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        _call("ip", "link", "set", far, "netns", self._name)
        for device, end, where in ((near, self._ends[0], ()), (far, self._ends[1], inside)):
            _call(*where, "ip", "address", "add", f"{end}/30", "dev", device)
            _call(*where, "ip", "link", "set", device, "up")
        self._shape(near, self._rates[0], ())
        self._shape(far, self._rates[1], inside)

    def _shape(self, device: str, mbit_s: float, where: Sequence[str]) -> None:
        add = (*where, "tc", "qdisc", "add", "dev", device)
        place: Sequence[str] = ("root",)
        if self._delay_s:
            _call(*add, "root", "handle", "1:", "netem", "delay", f"{1000 * self._delay_s}ms")
            place = ("parent", "1:")
        rate = ("rate", f"{mbit_s}mbit", "burst", f"{BURST_BYTES}", "latency", f"{QUEUE_MS}ms")
        _call(*add, *place, "tbf", *rate)


def missing(delay_s: float = 0.0) -> str | None:
    """Why this machine cannot make a ``NamespaceLink``; None if it can. It is tried for real.

    Parameters
    ----------
    delay_s
        Above 0: whether the kernel can delay, too. Some can shape and not delay.
    """
    try:
        with NamespaceLink(10, 10, delay_s=delay_s):
            return None
    except NamespaceError as error:
        return str(error)


def _ends(number: int) -> tuple[str, str]:
    """Both addresses of one of the 16384 smallest networks in the range for tests, RFC 2544."""
    first = int(ipaddress.IPv4Address("198.18.0.0")) + 4 * (number % 16384)
    near, far = (str(ipaddress.IPv4Address(first + place)) for place in (1, 2))
    return near, far


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise NamespaceError(f"{' '.join(command)}: {said[0]}")
