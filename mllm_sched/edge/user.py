"""A user: who it is and how much it may ask, checked."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


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


_READER, _NAME = TypeAdapter(User), TypeAdapter(Name)


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
        user = _READER.validate_python(entry)
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
