"""Settings of a front, read from one YAML file and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mllm_sched.pipeline.options import MESSAGE_BYTES
from mllm_sched.pipeline.security import Security, check_host

PORT = 50060


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; ValueError says what is wrong with it.

    >>> split_address("[::1]:50060")
    ('[::1]', 50060)
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"{address!r}: expected HOST:PORT, such as 127.0.0.1:{PORT}")
    return host, int(port)


class Tls(BaseModel):
    """PEM files for TLS on which both sides prove who they are: with users, and with agents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path
    key: Path
    authority: Path


class FrontConfig(BaseModel):
    """All that a front is started with. Paths are relative to the file's folder.

    Attributes
    ----------
    name
        Told to users.
    listen, metrics
        ``HOST:PORT`` for users, and for Prometheus: no metrics if null.
    agents
        ``HOST:PORT`` of every edge agent.
    users_file
        Who may ask; anyone if null.
    token_file
        Holds this front's own token at the agents.
    tls
        See ``Tls``; without it nothing leaves this machine, unless ``open`` is true.
    open
        Whether to listen and to call agents beyond this machine in the clear, tokens too.
    poll_s
        Seconds between two questions to an agent how it is.
    at_once
        Requests served at a time.
    held_bytes
        That all requests together may take until they are answered. A single one may have
        ``message_bytes``, at most half of that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "front"
    listen: str = f"127.0.0.1:{PORT}"
    metrics: str | None = None
    agents: Annotated[list[str], Field(min_length=1)]
    users_file: Path | None = None
    token_file: Path | None = None
    tls: Tls | None = None
    open: bool = False
    poll_s: Annotated[float, Field(ge=0.05, le=60, allow_inf_nan=False)] = 0.5
    at_once: Annotated[int, Field(ge=1)] = 256
    held_bytes: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    message_bytes: Annotated[int, Field(ge=1024)] = MESSAGE_BYTES

    @field_validator("agents")
    @classmethod
    def _agents_differ(cls, agents: list[str]) -> list[str]:
        if twice := sorted({one for one in agents if agents.count(one) > 1}):
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return agents

    @model_validator(mode="after")
    def _stays_here_or_is_encrypted(self) -> FrontConfig:
        security = Security(None, *self._files())
        for address in filter(None, (self.listen, self.metrics, *self.agents)):
            host, _ = split_address(address)
            if address != self.metrics:
                check_host(host, security, is_open=self.open)
        if 2 * self.message_bytes > self.held_bytes:
            raise ValueError(
                f"message_bytes {self.message_bytes}: expected at most half of held_bytes "
                f"{self.held_bytes}, or no user could send as much"
            )
        return self

    def _files(self) -> tuple[Path | None, ...]:
        return (self.tls.certificate, self.tls.key, self.tls.authority) if self.tls else ()

    @property
    def security(self) -> Security:
        """The front's own token at the agents, and its certificates."""
        token = self.token_file.read_text().strip() if self.token_file else None
        return Security(token, *self._files())

    @classmethod
    def read(cls, path: str | Path) -> FrontConfig:
        """The settings in a YAML file.

        Raises
        ------
        ValueError
            Names the file, and every setting that is unknown or wrong.
        OSError
            If it cannot be read.
        """
        path = Path(path)
        try:
            fields = yaml.safe_load(path.read_text())
            if not isinstance(fields, dict):
                raise ValueError("expected settings, one `name: value` a line")
            return cls(**_beside(path.parent, fields))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: no valid YAML: {error}") from None
        except ValidationError as error:
            told = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ValueError(f"{path}: {'; '.join(told)}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _beside(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The settings with their paths found from a folder."""
    found = {
        name: str(folder / fields[name])
        for name in ("users_file", "token_file")
        if isinstance(fields.get(name), str)
    }
    if isinstance(tls := fields.get("tls"), dict):
        found["tls"] = {name: str(folder / str(file)) for name, file in tls.items()}
    return {**fields, **found}
