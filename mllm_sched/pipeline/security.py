"""Who may ask: tokens, certificates of both sides, and the addresses that are listened on."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

METADATA = "authorization"


@dataclass(frozen=True)
class Security:
    """Secrets of a node or a client; none by default.

    Attributes
    ----------
    token
        Shared by both sides. It crosses the network in the clear unless there are certificates.
    certificate, key
        PEM files that prove who this side is.
    authority
        PEM file with whom the other side's certificate must be signed by.

    Raises
    ------
    ValueError
        If only some of the three files are given, or a token is empty or no ASCII.
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

    def _files(self) -> tuple[bytes, bytes, bytes]:
        assert self.certificate and self.key and self.authority
        return self.key.read_bytes(), self.certificate.read_bytes(), self.authority.read_bytes()

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Of a node that wants to see its clients' certificates; None without TLS."""
        if self.certificate is None:
            return None
        key, certificate, authority = self._files()
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Of a client; None without TLS."""
        if self.certificate is None:
            return None
        key, certificate, authority = self._files()
        return grpc.ssl_channel_credentials(authority, key, certificate)


def check_host(host: str, security: Security, *, is_open: bool = False) -> None:
    """Refuse to listen beyond this machine without certificates.

    Raises
    ------
    ValueError
        Unless the host is a loopback address, there are certificates, or ``is_open`` says that
        whoever reaches it may read everything, a token too.
    """
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
