"""Who may ask, and how much: one YAML file, which holds digests of tokens and never a token.

It is a list of entries, which services read at their start::

    - name: ann
      token_sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      rate_hz: 5.0

See ``User`` for the fields, and ``add``, which writes them.
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
    """Someone who may ask.

    Attributes
    ----------
    name
        Letters, digits and ``._@-``, 32 at most.
    token_sha256
        Digest of the token; empty for a user whom no token shows.
    rate_hz, burst
        Requests a second in the long run, and at once after a pause. ``.inf`` is no limit.
    at_once
        Requests under way.
    weight
        The user's share of the device.
    front
        Whether it may ask on behalf of others, and be told how busy the agent is.
    """

    name: Name
    token_sha256: Digest = field(default="", repr=False)
    rate_hz: Rate = 20.0
    burst: Count = 40
    at_once: Count = 16
    weight: Above0 = 1.0
    front: bool = False


_NAME = TypeAdapter(Name)


def user_of(number: int, entry: Any) -> User:
    """An entry of a file.

    Raises
    ------
    ValueError
        Names the entry by its number and what is wrong, but no value: that may be a token.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"user {number}: expected fields and their values")
    try:
        user = User(**{str(name): value for name, value in entry.items()})
    except ValidationError as error:
        faults = "; ".join(_said(fault) for fault in error.errors(include_input=False))
        raise ValueError(f"user {number}{_name_in(entry)}, {faults}") from None
    if not user.token_sha256:
        raise ValueError(f"user {number} ({user.name}), token_sha256: Field required")
    return user


def _said(fault: Any) -> str:
    where = ".".join(map(str, fault["loc"]))
    where = where if len(where) <= 32 else "a field"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{where}: no such field; expected {', '.join(User.__dataclass_fields__)}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def _name_in(entry: dict[Any, Any]) -> str:
    try:
        return f" ({_NAME.validate_python(entry.get('name'))})"
    except ValidationError:
        return ""


LONGEST_TOKEN = 256  # characters; what is longer was not made here
ANYONE = "anyone"


class Users:
    """All who may ask.

    Parameters
    ----------
    users
        With digests; no name or digest twice.
    everyone
        As whom those without a token are served; nobody is by default.

    Raises
    ------
    ValueError
        For a name or digest that stands there twice.
    """

    def __init__(self, users: Sequence[User], everyone: User | None = None) -> None:
        self._users, self._everyone = tuple(users), everyone
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
        """The users in a YAML file; a file that others may read is complained of in the log.

        Raises
        ------
        ValueError
            Names the file, the entry and the field; never what could be a token.
        OSError
            If it cannot be read.
        """
        path = Path(path)
        if path.stat().st_mode & 0o077:
            log.warning("%s: others than its owner can use it; `chmod 600` it", path)
        return _parsed(path, path.read_bytes())

    @classmethod
    def anyone(cls) -> Users:
        """For a system without tokens: whoever reaches it is one and the same user, unlimited."""
        return cls([], User(ANYONE, rate_hz=math.inf, at_once=1 << 30, front=True))

    def who(self, token: str | None) -> User | None:
        """Whose token it is, if anyone's.

        Takes the same time whoever it is: digests are compared in constant time, with all users.
        """
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
        """Whom a front asks for; one that is not known here was admitted there, so has no limits.

        Raises
        ------
        ValueError
            If that can be no user's name.
        """
        if (user := self._named.get(name)) is not None:
            return user
        try:
            return User(name, rate_hz=math.inf, at_once=1 << 30)
        except ValidationError as error:
            raise ValueError(f"name of a user: {error.errors()[0]['msg']}") from None


def new_token() -> str:
    """A token that nobody can guess: 256 random bits."""
    return secrets.token_urlsafe(32)


def add(path: str | Path, name: str, **limits: Any) -> str:
    """Add a user to a file, which is made if need be.

    The token is returned to be shown once: the file has its digest only. What already stands in the
    file stays as it is, comments too. Services read it at their start.

    Parameters
    ----------
    limits
        Fields of ``User``.

    Raises
    ------
    ValueError
        If the file is not valid, or would not be with this user; nothing is written then.
    OSError
        If it cannot be written; nothing is changed then.
    """
    path, token = Path(path), new_token()
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


class _Loader(yaml.SafeLoader):
    """Takes no field twice, as happens where the dash of an entry is forgotten."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        fields = super().construct_mapping(node, deep)
        if len(fields) < len(node.value):
            raise ValueError(
                f"a field stands twice in the entry of line {node.start_mark.line + 1}"
            )
        return fields


def _parsed(path: Path, content: bytes) -> Users:
    try:
        return Users(_entries(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _entries(content: bytes) -> list[User]:
    try:
        entries = yaml.load(content.decode(), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:  # whose text quotes the line
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"not YAML{f' in line {mark.line + 1}' if mark else ''}") from None
    if not (isinstance(entries, list) and entries):
        raise ValueError("expected a list of users, each `- name: ...`")
    return [user_of(number, entry) for number, entry in enumerate(entries, 1)]
