"""Which code and which packages this process runs."""

from __future__ import annotations

import platform
from functools import cache
from hashlib import sha256
from importlib.metadata import requires, version

from packaging.requirements import Requirement

from mllm_sched.study.dependencies import PACKAGE, package_files


def package_versions() -> dict[str, str]:
    """Versions of this package's direct dependencies, as they are installed."""
    wanted = [Requirement(line) for line in requires("mllm-sched") or []]
    return {need.name: version(need.name) for need in wanted if "extra" not in str(need.marker)}


def _digest() -> str:
    """Of the names and contents of all files of this package."""
    digest = sha256()
    for path in package_files():
        digest.update(f"{path.relative_to(PACKAGE)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


CODE = _digest()  # when this was imported: a process goes on with the code that it began with


@cache
def running() -> dict[str, str]:
    """What the numbers of this process hang on: its code, Python and packages, by name."""
    return {PACKAGE.name: CODE, "Python": platform.python_version(), **package_versions()}
