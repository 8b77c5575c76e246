"""Which files of this package a piece of code needs, found by reading it, not by running it.

Imports count wherever they stand, and so do names of modules in texts, since processes are started
by ``python -m``. That may be more than is needed, never less.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mllm_sched

PACKAGE = Path(mllm_sched.__file__).resolve().parent
NAMED = re.compile(rf"\b{PACKAGE.name}(?:\.\w+)*")


def code_files(source: str) -> list[Path]:
    """Files of the package that some code needs, through whatever these need in turn.

    Parameters
    ----------
    source
        Python. If it is none, as with the magic commands of a notebook, it may need everything.

    Returns
    -------
    Sorted: modules, and the other files of their packages, such as programs.
    """
    try:
        names = _names(source, PACKAGE.name)
    except SyntaxError:
        return package_files()
    found: set[Path] = set()
    left = {path for name in names for path in _modules(name)}
    while left:
        path = left.pop()
        found.add(path)
        names = _names(path.read_text(), _package_of(path))
        left |= {path for name in names for path in _modules(name)} - found
    return sorted(found | {other for path in found for other in _beside(path)})


def package_files() -> list[Path]:
    """All files of the package, sorted; not what is compiled, nor what an editor leaves behind."""
    return sorted(path for path in PACKAGE.rglob("*") if _counts(path))


@cache
def _names(source: str, package: str) -> frozenset[str]:
    """Dotted names of this package that code mentions, modules or what is in them."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = _home(node, package)
            names |= {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set() if id(node) in prose else set(NAMED.findall(node.value))
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE.name)


def _home(node: ast.ImportFrom, package: str) -> str:
    """Where ``from home import ...`` looks, dots at its beginning resolved."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) + 1 - node.level]
    return ".".join([*above, node.module or ""]).rstrip(".")


def _modules(name: str) -> Iterator[Path]:
    """Files of a module and of the packages around it; what is no module has none."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        place = PACKAGE.parent.joinpath(*parts[:length])
        yield from (
            path for path in (place / "__init__.py", place.with_suffix(".py")) if path.exists()
        )


def _package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def _beside(path: Path) -> Iterator[Path]:
    """What is not Python in a package, folders that are no packages included."""
    if path.name == "__init__.py":
        for other in path.parent.rglob("*"):
            homes = [folder for folder in other.parents if (folder / "__init__.py").exists()]
            if _counts(other) and other.suffix != ".py" and homes[0] == path.parent:
                yield other


def _counts(path: Path) -> bool:
    within = path.relative_to(PACKAGE).parts
    left = path.name.endswith(("~", "#")) or any(part.startswith(".") for part in within)
    return path.is_file() and "__pycache__" not in within and not left
