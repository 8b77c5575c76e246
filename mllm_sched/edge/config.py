"""Settings of an edge agent: one YAML file, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mllm_sched.arms import Level
from mllm_sched.pipeline.requests import WIRE_TYPES
from mllm_sched.pipeline.security import Security, check_host

Loaded = TypeVar("Loaded", bound="Section")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the field and the value."""


class Section(BaseModel):
    """A part of a configuration: unknown fields are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ValueError("expected HOST:PORT, for example 127.0.0.1:50061")
    return text


def _wire(name: str) -> str:
    if name not in WIRE_TYPES:
        raise ValueError(f"expected one of {', '.join(WIRE_TYPES)}")
    return name


Address = Annotated[str, AfterValidator(_address)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Tls(Section):
    """PEM files for mutual TLS: this side's certificate and key, and who signs the other side's."""

    certificate: Path
    key: Path
    authority: Path


class Listening(Section):
    """What an agent and its front have in common.

    Attributes
    ----------
    name
        Told with every answer, and in every log line.
    listen
        Where users ask.
    metrics
        Where Prometheus scrapes; nowhere if null.
    users_file
        Who may ask, as ``mllm-sched users`` writes it; anybody may, as one user, if null.
    token_file
        Holds the token that this side shows to the servers it asks.
    tls
        For both directions.
    open
        Listen beyond this machine in the clear.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    listen: Address = "127.0.0.1:50061"
    metrics: Address | None = None
    users_file: Path | None = None
    token_file: Path | None = None
    tls: Tls | None = None
    open: bool = False

    @model_validator(mode="after")
    def _stays_on_this_machine(self) -> Self:
        check_host(self.host, self.server_security, is_open=self.open)
        return self

    @property
    def host(self) -> str:
        """To listen on."""
        return self.listen.rpartition(":")[0]

    @property
    def port(self) -> int:
        """To listen on; 0 takes a free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def server_security(self) -> Security:
        """For users: certificates alone, since a token says who asks."""
        return Security(None, **self._files())

    @property
    def client_security(self) -> Security:
        """For the servers that this side asks; OSError if the token's file cannot be read."""
        token = self.token_file.read_text().strip() if self.token_file else None
        return Security(token, **self._files())

    def _files(self) -> dict[str, Any]:
        return dict(self.tls) if self.tls else {}


class SchedulerSection(Section):
    """Who chooses the arm, and within which limit.

    Attributes
    ----------
    limit_s
        On the latency of encoding one item.
    trusted
        Arms that are held to be within it before anything is known, by their levels; by default
        those that the device says.
    violations
        Share of tasks that may be measured above the limit before an alert fires; a rule does not
        see it.
    settings
        Of the rule itself; see its class.
    """

    name: str = "adaptive-safe-gp"
    limit_s: Positive
    violations: Share = 0.05
    trusted: Sequence[dict[str, Level]] = ()
    seed: int = 0
    settings: dict[str, Any] = {}


class JournalSection(Section):
    """Where every decision and measurement is written before it counts.

    Attributes
    ----------
    durability
        ``process``: what was written outlives the process; ``power``: a power cut too, at the
        price of a sync of the disk for each write.
    """

    path: Path
    durability: Literal["process", "power"] = "process"
    keep_days: Positive = 30.0
    keep_answers_s: Positive = 3600.0


class QueueSection(Section):
    """How much may wait, and how many items of a kind are encoded in one call at most."""

    waiting: Count = 64
    per_user: Count = 16
    batch: Literal[1, 2, 4, 8] = 1


class AgentConfig(Listening):
    """An edge agent.

    Attributes
    ----------
    device
        ``host``, ``agx-orin``, ``agx-orin-sim`` or ``trace:FILE``.
    device_settings
        See ``open_runtime``.
    model, seed, modalities
        Whose encoders it holds; those of all modalities by default.
    server
        The LLM server.
    wire, cut
        Type and cut of the features that go there.
    answers_at_once
        Requests that the LLM server answers for this agent at a time.
    siblings
        Agents to learn from before the first task; their boards are about ``scatter`` from this
        one, as a standard deviation in logs.
    """

    device: str = "host"
    device_settings: dict[str, Any] = {}
    model: str = "small-llava"
    seed: int = 0
    modalities: Sequence[str] = ()
    server: Address
    wire: Annotated[str, AfterValidator(_wire)] = "float16"
    cut: Literal["encoder", "projector"] = "projector"
    answers_at_once: Count = 4
    scheduler: SchedulerSection
    journal: JournalSection
    queue: QueueSection = QueueSection()
    siblings: Sequence[Address] = ()
    scatter: Positive = 0.2


def read_config(path: str | Path, kind: type[Loaded]) -> Loaded:
    """The configuration in a YAML file; its relative paths are taken from the file's folder.

    Raises
    ------
    ConfigError
        Names every field that is wrong, its value and what was expected.
    """
    path = Path(path)
    try:
        given = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected fields and their values, not {type(given).__name__}")
    try:
        return _from_folder(kind.model_validate(given), path.parent.resolve())
    except ValidationError as error:
        raise ConfigError(f"{path}: {_said(error)}") from None


def _said(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(map(str, fault["loc"])) or "the whole"
        value = "" if fault["type"] in ("missing", "value_error") else f": {fault['input']!r}"
        what = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}{value[:80]}: {what}")
    return "; ".join(lines)


def _from_folder(section: Loaded, folder: Path) -> Loaded:
    """The same with every path made absolute."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changed[name] = folder / value
        elif isinstance(value, Section):
            changed[name] = _from_folder(value, folder)
    return section.model_copy(update=changed)
