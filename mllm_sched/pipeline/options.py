"""Settings of nodes and their clients: limits, secrets, and options of the command line.

gRPC is imported late: the command line needs them where it may not be installed.
"""

from __future__ import annotations

import argparse
import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

DTYPES = ("float32", "bfloat16", "float16")
REQUESTS = 8
MESSAGE_BYTES = 64 << 20
METADATA = "authorization"


@dataclass(frozen=True)
class Limits:
    """Limits of a node."""

    requests: int = REQUESTS  # at a time; one more is refused with RESOURCE_EXHAUSTED
    bytes: int = MESSAGE_BYTES  # of one message
    new_tokens: int = 1024  # of one answer
    idle_s: float = 30.0  # that an upload may pause in all
    answer_s: float = 600.0  # for a request without a deadline, or with a later one


@dataclass(frozen=True)
class Security:
    """Secrets of a node or a client; none by default.

    The token, which both sides share, crosses the network in the clear without certificates.
    ``certificate`` and ``key`` are PEM files of this side, ``authority`` signed the other side's
    certificate. Raises ValueError for some of the files without the others, or an invalid token.
    """

    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def __post_init__(self) -> None:
        given = [path is not None for path in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise ValueError("TLS is mutual here: give certificate, key and authority together")
        if self.token is not None and not (self.token and self.token.isascii()):
            raise ValueError("the token must be ASCII text, not empty")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a client sends along with every call."""
        return ((METADATA, f"Bearer {self.token}"),) if self.token else ()

    def allows(self, metadata: object) -> bool:
        """Whether a call came with the token, compared in constant time."""
        if self.token is None:
            return True
        given = dict(metadata or ()).get(METADATA, "")  # type: ignore[call-overload]
        return hmac.compare_digest(str(given).encode(), f"Bearer {self.token}".encode())

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Of a node, which asks for its clients' certificates; None without TLS."""
        if self.certificate is None:
            return None
        import grpc

        key, certificate, authority = self._files()
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Of a client; None without TLS."""
        if self.certificate is None:
            return None
        import grpc

        key, certificate, authority = self._files()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _files(self) -> tuple[bytes, bytes, bytes]:
        assert self.certificate and self.key and self.authority
        return self.key.read_bytes(), self.certificate.read_bytes(), self.authority.read_bytes()


def check_host(host: str, security: Security, *, is_open: bool = False) -> None:
    """ValueError for a host that others can reach, without certificates, unless ``is_open``."""
    if is_loopback(host) or is_open or security.certificate:
        return
    raise ValueError(
        f"host {host}: others can reach it, and nothing is encrypted, a token neither; give "
        "certificates, or --open if that is meant"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def add_options(parser: argparse.ArgumentParser, port: int = 50051) -> None:
    """Options of every node; a client takes those on security."""
    add = parser.add_argument
    add("--port", type=int, default=port, help="0: a free one (default %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--open", action="store_true", help="listen beyond this machine in the clear")
    add("--model", default="small-llava", help="a small one, or hf:PATH (default %(default)s)")
    add("--seed", type=int, default=0, help="of a small model's weights")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights")
    add("--limit", type=int, default=REQUESTS, help="requests at a time (%(default)s)")
    add("--max-bytes", type=int, default=MESSAGE_BYTES, help="of a message (%(default)s)")
    add("--idle", type=float, default=30.0, metavar="S", help="an upload may pause (%(default)s)")
    add("--parent", type=int, help=argparse.SUPPRESS)  # the process to end with
    add("--threads", type=int, default=1, help="of PyTorch (default %(default)s)")
    for name in ("encoders", "llm"):
        add(f"--{name}-slowdown", type=float, default=1.0, metavar="N", help="imitate a slower one")
    add("--token-file", type=Path, metavar="FILE", help="holds the token both sides share")
    add("--certificate", type=Path, metavar="FILE.pem", help="of this side, for mutual TLS")
    add("--key", type=Path, metavar="FILE.pem", help="of this side's certificate")
    add("--authority", type=Path, metavar="FILE.pem", help="signed the other side's certificate")


def check_options(options: argparse.Namespace) -> None:
    """ValueError for numbers that a node cannot work with."""
    least = {
        **{"limit": 1, "max_bytes": 1024, "threads": 1, "idle": 0.1},
        **{"encoders_slowdown": 1, "llm_slowdown": 1},
    }
    for name, bound in least.items():
        if not bound <= (value := getattr(options, name)) < float("inf"):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value:g}: expected {bound} or more")


def security_of(options: argparse.Namespace) -> Security:
    """Secrets as the options name them."""
    file = options.token_file
    token = file.read_text().strip() if file else None
    return Security(token, options.certificate, options.key, options.authority)
