"""The safetensors file that holds a scheduler: its arguments and its state.

Numbers and strings are JSON in the header, and arrays follow. Nothing in it is ever executed, and
a SHA-256 digest refuses a file that was truncated or edited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.schedulers.gp import Hyperparameters

FORMAT, VERSION = "mllm-sched scheduler", "1"
DTYPES = {"F64": np.float64, "I64": np.int64, "U64": np.uint64, "U32": np.uint32, "BOOL": bool}
Arrays = dict[str, np.ndarray]


class StateError(ValueError):
    """A file that no scheduler can be read from."""


def factor_words(factor: Factor) -> dict[str, Any]:
    """A factor as JSON; ``Factor(**words)`` is the factor again."""
    return {
        "name": factor.name,
        "levels": list(factor.levels),
        "log": factor.log,
        "labels": list(factor.labels),
    }


def plain(value: Any) -> Any:
    """A setting with its arms and hyperparameters as JSON; arrays stay arrays."""
    if isinstance(value, Arm):
        return {"arm": value.index}
    if isinstance(value, Hyperparameters):
        return {"hyperparameters": asdict(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def restored(value: Any, space: ArmSpace) -> Any:
    """The inverse of ``plain``."""
    if not isinstance(value, dict):
        return value
    if list(value) == ["arm"]:
        return space[value["arm"]]
    if list(value) == ["hyperparameters"]:
        given = value["hyperparameters"]
        return Hyperparameters(**{**given, "factors": tuple(given["factors"])})
    return {key: restored(item, space) for key, item in value.items()}


def pack(name: str, made: dict[str, Any], state: dict[str, Any]) -> bytes:
    """A file's content: the scheduler's name, its arguments and its state.

    Raises ValueError for a value that no file can hold, such as a function.
    """
    arrays: Arrays = {}
    body = {
        "rule": name,
        "made": _split(made, arrays, "made"),
        "state": _split(state, arrays, "state"),
    }
    text = json.dumps(body)
    header = {"format": FORMAT, "version": VERSION, "body": text}
    return to_bytes(arrays, metadata={**header, "sha256": _digest(text, arrays)})


def unpack(data: bytes, path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What ``pack`` was given; StateError names the ``path`` if anything is not as it was."""
    try:
        header = metadata(data)
        arrays = {
            name: np.frombuffer(tensor["data"], dtype=DTYPES[tensor["dtype"]]).reshape(
                tensor["shape"]
            )
            for name, tensor in deserialize(data)
        }
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: truncated, or no scheduler: {error}") from error
    if header.get("format") != FORMAT:
        raise StateError(f"{path}: no scheduler, but {header.get('format', 'something else')!r}")
    if (version := header.get("version", "")) != VERSION:
        raise StateError(f"{path}: version {version!r}; this package reads {VERSION}")
    text = header.get("body", "")
    if header.get("sha256") != _digest(text, arrays):
        raise StateError(f"{path}: edited or damaged, its digest does not fit; keep the last copy")
    try:
        body = json.loads(text)
        made, state = (_joined(body[part], arrays, part) for part in ("made", "state"))
        return str(body["rule"]), made, state
    except (KeyError, TypeError) as error:
        raise StateError(f"{path}: no scheduler: {error!r} is missing or wrong") from error


def metadata(data: bytes) -> dict[str, str]:
    """The strings in a safetensors header, which begins with its own length in eight bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    words = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise ValueError("header of another form")
    return words


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _split(value: Any, arrays: Arrays, name: str) -> Any:
    """The value as JSON, its arrays put aside under their dotted names."""
    if isinstance(value, np.ndarray):
        wide = {"f": np.float64, "i": np.int64}.get(value.dtype.kind, value.dtype)
        arrays[name] = np.ascontiguousarray(value, dtype=wide)
        return {"array": name}
    if isinstance(value, dict):
        return {key: _split(item, arrays, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, arrays, f"{name}.{place}") for place, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{name}: a {type(value).__name__} cannot be saved; give it as arrays")


def _joined(value: Any, arrays: Arrays, name: str) -> Any:
    """The inverse of ``_split``."""
    if isinstance(value, dict):
        if value == {"array": name}:
            return arrays[name]
        return {key: _joined(item, arrays, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_joined(item, arrays, f"{name}.{place}") for place, item in enumerate(value)]
    return value
