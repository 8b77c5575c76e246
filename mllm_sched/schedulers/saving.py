"""Schedulers in files: how one was made and what it has learned, as safetensors.

Numbers and words stand as JSON in the header, arrays behind it. Nothing in the file is ever run.
A digest of all of it stands beside it, so that a file that was cut or edited is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.files import write_whole
from mllm_sched.schedulers.base import Scheduler
from mllm_sched.schedulers.kernels import Hyperparameters

FORMAT, VERSION = "mllm-sched scheduler", 1
Rule = TypeVar("Rule", bound=Scheduler)
Arrays = dict[str, np.ndarray]


class StateError(ValueError):
    """A file that no scheduler can be read from."""


def save(scheduler: Scheduler, path: str | Path) -> Path:
    """Write a scheduler; see ``Scheduler.save``."""
    path = Path(path)
    write_whole(path, packed(scheduler))
    return path


def packed(scheduler: Scheduler) -> bytes:
    """What ``save`` writes."""
    arrays: Arrays = {}
    body = {
        "rule": scheduler.name,
        "made": _split(_made(scheduler), arrays, "made"),
        "state": _split(scheduler.state(), arrays, "state"),
    }
    text = json.dumps(body)
    header = {"format": FORMAT, "version": str(VERSION), "body": text}
    return to_bytes(arrays, metadata={**header, "sha256": _digest(text, arrays)})


def load(path: str | Path, kind: type[Rule]) -> Rule:
    """Read a scheduler of a kind; see ``Scheduler.load``."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    scheduler = unpacked(data, str(path))
    if not isinstance(scheduler, kind):
        raise StateError(f"{path}: holds the scheduler {scheduler.name!r}, not {kind.name!r}")
    return scheduler


def unpacked(data: bytes, path: str) -> Scheduler:
    """The scheduler in what ``packed`` made; errors call it by its ``path``."""
    from mllm_sched.schedulers.registry import SCHEDULERS

    body, arrays = _read(data, path)
    rule = SCHEDULERS.get(body.get("rule", ""))
    if rule is None:
        raise StateError(f"{path}: holds the unknown scheduler {body.get('rule')!r}")
    try:
        scheduler = _make(rule, _joined(body["made"], arrays, "made"))
        scheduler.set_state(_joined(body["state"], arrays, "state"))
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path}: does not fit this version of {rule.name}: {error}") from error
    return scheduler


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


def _made(scheduler: Scheduler) -> dict[str, Any]:
    """The arguments a scheduler was made with, which it keeps under their names."""
    contexts = scheduler.contexts.factors if scheduler.contexts else ()
    own = {name: plain(getattr(scheduler, name)) for name in _settings(type(scheduler))}
    return {
        "factors": [factor_words(factor) for factor in scheduler.space.factors],
        "contexts": [factor_words(factor) for factor in contexts],
        "objective": scheduler.objective,
        "limits": dict(scheduler.limits),
        "seeds": scheduler.seeds.tolist(),
        "settings": own,
    }


def _make(rule: type[Rule], made: dict[str, Any]) -> Rule:
    space = ArmSpace([Factor(**factor) for factor in made["factors"]])
    return rule(
        space,
        objective=made["objective"],
        limits=made["limits"],
        seeds=[space[seed] for seed in made["seeds"]],
        contexts=[Factor(**factor) for factor in made["contexts"]],
        **{name: _whole(value, space) for name, value in made["settings"].items()},
    )


def _settings(rule: type[Scheduler]) -> Iterator[str]:
    """Names of a rule's own settings: the keywords of its classes, without those of all rules."""
    for base in rule.__mro__[: rule.__mro__.index(Scheduler)]:
        if "__init__" in vars(base):
            for parameter in inspect.signature(base).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    yield parameter.name


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


def _whole(value: Any, space: ArmSpace) -> Any:
    """The inverse of ``_plain``."""
    if not isinstance(value, dict):
        return value
    if list(value) == ["arm"]:
        return space[value["arm"]]
    if list(value) == ["hyperparameters"]:
        given = value["hyperparameters"]
        return Hyperparameters(**{**given, "factors": tuple(given["factors"])})
    return {key: _whole(item, space) for key, item in value.items()}
