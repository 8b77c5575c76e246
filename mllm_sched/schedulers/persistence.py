"""The state of a scheduler, and the safetensors file that holds it.

A class names in ``STATE`` the attributes that change while it works; all others follow from its
arguments. In the file, numbers and strings are JSON in the header, and arrays follow. Nothing in
it is ever executed, and a SHA-256 digest refuses a file that was truncated or edited.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

FORMAT, VERSION = "mllm-sched scheduler", "1"
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
DTYPES = {"F64": np.float64, "I64": np.int64, "U64": np.uint64, "U32": np.uint32, "BOOL": bool}
Arrays = dict[str, np.ndarray]


class StateError(ValueError):
    """A file that no scheduler can be read from."""


class Stateful:
    """An object whose state can be taken out and put into another one made alike.

    Examples
    --------
    >>> class Counter(Stateful):
    ...     STATE = ("counts",)
    ...     def __init__(self):
    ...         self.counts = np.zeros(2)
    >>> one, other = Counter(), Counter()
    >>> one.counts[1] = 5
    >>> other.set_state(one.state())
    >>> other.counts.tolist()
    [0.0, 5.0]
    """

    STATE: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """Copies of everything that changes: arrays, numbers, strings, and dicts of them."""
        return {name: _taken(getattr(self, name)) for name in self.state_names()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` returned; ValueError if an entry is missing or misshapen."""
        for name in self.state_names():
            if name not in state:
                raise ValueError(f"{type(self).__name__}: the state has no {name!r}")
            setattr(self, name, _put_back(getattr(self, name), state[name], name))

    @classmethod
    def state_names(cls) -> list[str]:
        """``STATE`` of the class and its bases, base first."""
        return [name for base in reversed(cls.__mro__) for name in vars(base).get("STATE", ())]


def same_state(one: Any, other: Any) -> bool:
    """Whether two states are the same to the last bit.

    >>> same_state({"a": np.ones(2)}, {"a": np.ones(2)}), same_state([1], [1.0])
    (True, False)
    """
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.tobytes() == other.tobytes()
    return bool(one == other) and type(one) is type(other)


def _taken(value: Any) -> Any:
    if isinstance(value, Stateful):
        return value.state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {str(key): _taken(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_taken(item) for item in value]
    return value


def _put_back(current: Any, value: Any, name: str) -> Any:
    """The value in the form of what it replaces; objects stay and take on its state."""
    if isinstance(current, Stateful):
        current.set_state(value)
        return current
    if isinstance(current, np.random.Generator):
        return _generator(value)
    if isinstance(current, np.ndarray):
        array = np.array(value, dtype=current.dtype, order="C")
        if array.shape != current.shape:
            raise ValueError(f"{name} of shape {array.shape}: expected {current.shape}")
        return array
    if isinstance(current, dict) and any(
        isinstance(item, Stateful | np.ndarray) for item in current.values()
    ):
        return {key: _put_back(item, value[str(key)], name) for key, item in current.items()}
    return value


def _generator(state: dict[str, Any]) -> np.random.Generator:
    if state.get("bit_generator") not in BIT_GENERATORS:
        raise ValueError(f"random numbers by {state.get('bit_generator')!r}: unknown")
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


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
