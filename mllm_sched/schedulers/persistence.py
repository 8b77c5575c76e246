"""What a scheduler was made with and has learned, as a safetensors file.

Numbers and words stand as JSON in the header, arrays behind it. Nothing in the file is ever run.
A digest of all of it stands beside it, so that a file that was cut or edited is refused.
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

FORMAT, VERSION = "mllm-sched scheduler", 1
Arrays = dict[str, np.ndarray]


class StateError(ValueError):
    """A file that no scheduler can be read from."""


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
    header = {"format": FORMAT, "version": str(VERSION), "body": text}
    return to_bytes(arrays, metadata={**header, "sha256": _digest(text, arrays)})


def unpack(data: bytes, path: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What ``pack`` was given; StateError names the ``path`` if anything is not as it was."""
    body, arrays = _read(data, path)
    try:
        made, state = (_joined(body[part], arrays, part) for part in ("made", "state"))
        return str(body["rule"]), made, state
    except (KeyError, TypeError) as error:
        raise StateError(f"{path}: no scheduler: {error!r} is missing or wrong") from error


def _read(data: bytes, path: str) -> tuple[dict[str, Any], Arrays]:
    """What a file holds, once everything about it is as it should be."""
    try:
        header = _metadata(data)
        arrays = {name: _array(tensor) for name, tensor in deserialize(data)}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: truncated, or no scheduler: {error}") from error
    if header.get("format") != FORMAT:
        raise StateError(f"{path}: no scheduler, but {header.get('format', 'something else')!r}")
    version = header.get("version", "")
    if version != str(VERSION):
        raise StateError(f"{path}: version {version!r}; this package reads {VERSION}")
    text = header.get("body", "")
    if header.get("sha256") != _digest(text, arrays):
        raise StateError(f"{path}: edited or damaged, its digest does not fit; keep the last copy")
    return json.loads(text), arrays


def _metadata(data: bytes) -> dict[str, str]:
    """The words in the header, which begins with its own length in eight bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    words = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise ValueError("header of another form")
    return words


def _array(tensor: Mapping[str, Any]) -> np.ndarray:
    kinds = {"F64": np.float64, "I64": np.int64, "U64": np.uint64, "U32": np.uint32, "BOOL": bool}
    return np.frombuffer(tensor["data"], dtype=kinds[tensor["dtype"]]).reshape(tensor["shape"])


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


def factor_words(factor: Factor) -> dict[str, Any]:
    """A factor as JSON; ``Factor(**words)`` is the factor again."""
    return {
        "name": factor.name,
        "levels": list(factor.levels),
        "log": factor.log,
        "labels": list(factor.labels),
    }


def plain(value: Any) -> Any:
    """A setting of a rule with its arms and hyperparameters as JSON; arrays stay arrays."""
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
