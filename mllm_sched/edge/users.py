"""Who may ask, and how much.

The users' file is YAML, and holds the digest of each token, never a token::

    - name: ann
      token_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      rate_hz: 5.0

Services read it at their start; ``User`` has its fields.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

log = logging.getLogger(__name__)


def _digest(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ValueError("expected 64 digits in lower case, as `mllm-sched users` writes them")
    return text


# A name is shorter than a token, so that no token is taken for one and shown.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,32}$")]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Digest = Annotated[str, AfterValidator(_digest)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True))
class User:
    """Someone who may ask."""

    name: Name
    token_sha256: Digest = field(default="", repr=False)  # empty for a user whom no token shows
    rate_hz: Rate = 20.0  # requests a second in the long run; ``.inf`` is no limit
    burst: Count = 40  # requests at once after a pause
    at_once: Count = 16  # requests under way
    weight: Above0 = 1.0  # share of the device
    front: bool = False  # may ask on behalf of others, and be told how busy the agent is


def _user(number: int, entry: Any) -> User:
    """A user from an entry of the file.

    The ValueError names the entry by its number, and no value: that may be a token.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"user {number}: expected fields and their values")
    name = ""
    try:
        name = f" ({TypeAdapter(Name).validate_python(entry.get('name'))})"
        user = User(**{str(field): value for field, value in entry.items()})
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors(include_input=False))
        raise ValueError(f"user {number}{name}, {faults}") from None
    if not user.token_sha256:
        raise ValueError(f"user {number} ({user.name}), token_sha256: Field required")
    return user


def _fault(fault: Any) -> str:
    where = ".".join(map(str, fault["loc"])) or "name"
    where = where if len(where) <= 32 else "a field"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{where}: no such field; expected {', '.join(User.__dataclass_fields__)}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


LONGEST_TOKEN = 256  # characters; what is longer was not made here


class Users:
    """All who may ask; no name or digest twice, else ValueError."""

    def __init__(self, users: Sequence[User]) -> None:
        self._users = tuple(users)
        self._everyone: User | None = None  # for whoever calls
        self._named: dict[str, User] = {}
        digests: dict[str, str] = {}
        for number, user in enumerate(users, 1):
            if self._named.setdefault(user.name, user) is not user:
                raise ValueError(f"user {number}, name: {user.name} stands there twice")
            other = digests.setdefault(user.token_sha256, user.name)
            if user.token_sha256 and other != user.name:
                raise ValueError(f"user {number} ({user.name}), token_sha256: {other} has it too")

    def describe(self) -> str:
        """Who may ask, in words."""
        if self._everyone:
            return "anybody, as one user without limits"
        return f"{len(self._users)}, each by a token"

    @classmethod
    def read(cls, path: str | Path) -> Users:
        """The users in a YAML file; the log warns of one that others may read.

        Raises OSError if it cannot be read, and a ValueError that names the file, the entry and the
        field, and never what could be a token.
        """
        path = Path(path)
        if path.stat().st_mode & 0o077:
            log.warning("%s: others than its owner can use it; `chmod 600` it", path)
        return _parsed(path, path.read_bytes())

    @classmethod
    def anyone(cls) -> Users:
        """For a system without tokens: all callers are one user, without limits."""
        users = cls([])
        users._everyone = User("anyone", rate_hz=math.inf, at_once=1 << 30, front=True)
        return users

    def who(self, token: str | None) -> User | None:
        """The user with that token; its digest is compared with all, in constant time."""
        if self._everyone is not None:
            return self._everyone
        if not token or len(token) > LONGEST_TOKEN or not token.isascii():
            return None
        given, found = _sha256(token), None
        for user in self._users:
            if hmac.compare_digest(user.token_sha256, given):
                found = user
        return found

    def named(self, name: str) -> User:
        """The user a front asks for. One unknown here was admitted there, and has no limits.

        ValueError if that can be no user's name.
        """
        if (user := self._named.get(name)) is not None:
            return user
        try:
            return User(name, rate_hz=math.inf, at_once=1 << 30)
        except ValidationError as error:
            raise ValueError(f"name of a user: {error.errors()[0]['msg']}") from None


def add(path: str | Path, name: str, **limits: Any) -> str:
    """Add a user to a file, which is made if need be, and return its new token.

    ``limits`` are fields of ``User``. The file gets the token's digest only. What already stands in
    it stays, comments too. Nothing is changed if it cannot be written (OSError), is not valid, or
    would not be with this user (ValueError).
    """
    path, token = Path(path), secrets.token_urlsafe(32)
    entry = {"name": name, "token_sha256": _sha256(token), **limits}
    text = yaml.safe_dump([entry], sort_keys=False).encode()
    _parsed(path, text)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two at a time would both find the name free
        before = file.readall()
        addition = text if before.endswith(b"\n") or not before else b"\n" + text
        _parsed(path, before + addition)
        try:
            if file.write(addition) != len(addition):
                raise OSError(f"{path}: no room for one more user")
            os.fsync(file)
        except OSError:
            file.truncate(len(before))
            raise
    return token


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _parsed(path: Path, content: bytes) -> Users:
    try:
        entries = load_yaml(content)
        if not (isinstance(entries, list) and entries):
            raise ValueError("expected a list of users, each `- name: ...`")
        return Users([_user(number, entry) for number, entry in enumerate(entries, 1)])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


MERGE = "tag:yaml.org,2002:merge"  # of the key in `<<: *base`, whose fields may stand again


class _Loader(yaml.SafeLoader):
    """Takes no field twice, as happens where the dash of an entry is forgotten."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = [str(key.value) for key, _ in node.value if key.tag != MERGE]
        if len(set(own)) < len(own):
            line = node.start_mark.line + 1
            raise ValueError(f"a field stands twice in the entry of line {line}")
        return super().construct_mapping(node, deep)


def load_yaml(content: bytes) -> Any:
    """What a YAML file holds; the ValueError names the line and does not quote it."""
    try:
        return yaml.load(content.decode(), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"not YAML{f' in line {mark.line + 1}' if mark else ''}") from None
