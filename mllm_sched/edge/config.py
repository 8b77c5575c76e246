"""Settings of an edge agent and of a front: one YAML file, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from mllm_sched.arms import Level
from mllm_sched.edge.users import Users, load_yaml
from mllm_sched.pipeline.options import MESSAGE_BYTES, Security, check_host
from mllm_sched.pipeline.requests import WIRE_TYPES

SHOWN = (str, int, float)  # values that an error shows; a mapping may hold a secret
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


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are taken from the folder of the file that they stand in."""
    return Path((info.context or {}).get("folder", "")) / path


def _device(name: str, info: ValidationInfo) -> str:
    kind, _, file = name.partition(":")
    return f"{kind}:{_in_folder(Path(file), info)}" if kind == "trace" and file else name


def _private(address: str, info: ValidationInfo) -> str:
    """An address that this side asks; beyond this machine the traffic must be encrypted."""
    if {"open", "tls"} <= set(info.data):  # else they are reported themselves
        security = _security(info.data["tls"])
        check_host(address.rpartition(":")[0], security, is_open=info.data["open"])
    return address


Address = Annotated[str, AfterValidator(_address)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
File = Annotated[Path, AfterValidator(_in_folder)]
Device = Annotated[str, AfterValidator(_device)]
Asked = Annotated[Address, AfterValidator(_private)]


class Tls(Section):
    """PEM files for mutual TLS: this side's certificate and key, and who signs the other side's."""

    certificate: File
    key: File
    authority: File


def _security(tls: Tls | None, token: str | None = None) -> Security:
    return Security(token, **(dict(tls) if tls else {}))


class Listening(Section):
    """Fields that an agent and its front have in common."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]  # told with every answer
    listen: Address = "127.0.0.1:50061"  # for users
    metrics: Address | None = None  # for Prometheus
    users_file: File | None = None  # of ``mllm-sched users``; without it anybody may ask, as one
    token_file: File | None = None  # of the token that is shown to the servers that are asked
    tls: Tls | None = None  # for both directions
    open: bool = False  # listen and ask beyond this machine without encryption

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
        """For users: certificates alone; their tokens are in ``users_file``."""
        return _security(self.tls)

    @property
    def client_security(self) -> Security:
        """For the servers that this side asks; OSError if the token cannot be read."""
        token = self.token_file.read_text().strip() if self.token_file else None
        return _security(self.tls, token)

    def read_users(self) -> Users:
        """Those who may ask. Raises as ``Users.read``."""
        return Users.read(self.users_file) if self.users_file else Users.anyone()

    def describe(self) -> str:
        """Where it listens, and for whom, in two lines. Raises as ``Users.read``."""
        metrics = f"metrics on {self.metrics}" if self.metrics else "no metrics"
        users = self.read_users().describe()
        return f"{self.name} listens on {self.listen}, {metrics}\nusers: {users}"


class SchedulerSection(Section):
    """The scheduler and its limit."""

    name: str = "adaptive-safe-gp"
    limit_s: Positive  # on the latency of encoding one item
    violations: Share = 0.05  # of tasks, before an alert fires; the scheduler does not see it
    trusted: Sequence[dict[str, Level]] = ()  # arms by their levels; the device's own if none
    seed: int = 0
    settings: dict[str, Any] = {}  # see its class


class JournalSection(Section):
    """The journal; see ``Journal``."""

    path: File
    durability: Literal["process", "power"] = "process"
    keep_days: Positive = 30.0
    keep_answers_s: Positive = 3600.0


class QueueSection(Section):
    """How many requests may wait, and how many items of a kind are encoded in one call at most."""

    waiting: Annotated[int, Field(ge=1, le=256)] = 64
    per_user: Count = 16
    batch: Literal[1, 2, 4, 8] = 1


class AgentConfig(Listening):
    """An edge agent."""

    device: Device = "host"  # ``host``, ``agx-orin``, ``agx-orin-sim`` or ``trace:FILE``
    # Of its class; ``seed`` of its randomness; ``timeout_s``, ``open_timeout_s`` of ModelEncoders.
    device_settings: dict[str, Any] = {}
    model: str = "small-llava"  # whose encoders it holds
    seed: int = 0  # of the model's weights
    modalities: Sequence[str] = ()  # all by default
    server: Asked  # the LLM server
    wire: Annotated[str, AfterValidator(_wire)] = "float16"  # type of the features sent there
    cut: Literal["encoder", "projector"] = "projector"  # after which they are taken
    answers_at_once: Count = 4  # that the LLM server makes for this agent
    scheduler: SchedulerSection
    journal: JournalSection
    queue: QueueSection = QueueSection()
    siblings: Sequence[Asked] = ()  # agents to learn from before the first task
    scatter: Positive = 0.2  # of their boards from this one: a standard deviation in logs


class FrontConfig(Listening):
    """A front."""

    listen: Address = "127.0.0.1:50060"
    agents: Annotated[Sequence[Asked], Field(min_length=1)]
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5  # between requests for their status
    at_once: Count = 256  # requests
    held_bytes: Count = 512 << 20  # that all requests together may take
    message_bytes: Annotated[int, Field(ge=1024)] = MESSAGE_BYTES  # and one

    @model_validator(mode="after")
    def _check(self) -> Self:
        if twice := sorted({one for one in self.agents if list(self.agents).count(one) > 1}):
            raise ValueError(f"agents: {', '.join(twice)} stands there twice")
        if 2 * self.message_bytes > self.held_bytes:
            raise ValueError(
                f"message_bytes={self.message_bytes}: expected at most half of "
                f"held_bytes={self.held_bytes}"
            )
        return self


def read_config(path: str | Path, kind: type[Loaded]) -> Loaded:
    """The configuration in a YAML file; its relative paths are taken from the file's folder.

    Raises ConfigError, which names every field that is wrong, its value and what was expected. Of
    an unknown field the value is left out: it may be a secret in the wrong place.
    """
    path = Path(path)
    try:
        given = load_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected fields and their values, not {type(given).__name__}")
    try:
        return kind.model_validate(given, context={"folder": path.parent.resolve()})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(map(str, fault["loc"])) or "the whole"
        is_shown = fault["type"] != "extra_forbidden" and isinstance(fault["input"], SHOWN)
        value = f": {fault['input']!r}" if is_shown else ""
        what = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}{value[:80]}: {what}")
    return "; ".join(lines)
