"""Parameters of notebooks, given as texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill
import yaml

# YAML reads all other types; of a number it would take 1e-1 for a text.
READERS: Mapping[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


def pairs(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE``, as the command line has it, by name; ValueError if it is not that."""
    split = [item.partition("=") for item in given]
    for name, equals, value in split:
        if not (name and equals and value):
            raise ValueError(f"--set {name}{equals}{value}: expected NAME=VALUE")
    return {name: value for name, _, value in split}


def typed(parameters: Mapping[str, str], chosen: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Parameters given as text, for each notebook those that it has, with their types.

    Raises
    ------
    ValueError
        For a parameter that no notebook has (the known ones are listed), or a value of another
        type than the notebook's default.
    """
    known = {path: papermill.inspect_notebook(str(path)) for path in chosen}
    for name in parameters:
        if not any(name in has for has in known.values()):
            lines = [f"  {path.stem}: {', '.join(has)}" for path, has in known.items() if has]
            raise ValueError(f"no notebook has the parameter {name!r}:\n" + "\n".join(lines))
    return {
        path: {
            name: _value(path.stem, name, text, has[name])
            for name, text in parameters.items()
            if name in has
        }
        for path, has in known.items()
    }


def _value(notebook: str, name: str, text: str, parameter: Mapping[str, str]) -> Any:
    wanted = parameter["inferred_type_name"]
    try:
        value = READERS.get(wanted, yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if type(value).__name__ != wanted:
        raise ValueError(f"{notebook}: {name}={text}: expected {wanted}")
    return value
