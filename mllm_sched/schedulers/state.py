"""The state of an object: what changes while it works.

A class names in ``STATE`` the attributes that change; all others follow from its arguments.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class Stateful:
    """An object whose state can be taken out and put into another one made alike."""

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
