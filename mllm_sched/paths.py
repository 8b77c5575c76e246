"""The folders that are read and written, in one place.

In a checkout they are the repository's. A package that was installed from a wheel brings its own
``data``; it writes into the caller's folder, and what it can make again into the user's cache.

``MLLM_SCHED_ROOT`` names another checkout, ``MLLM_SCHED_RESULTS`` another folder of results.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_NAMED = os.environ.get("MLLM_SCHED_ROOT")
INSTALLED = not _NAMED and (PACKAGE / "data").is_dir()  # from a wheel

ROOT = Path.cwd() if INSTALLED else Path(_NAMED or PACKAGE.parent).resolve()

DATA = (PACKAGE if INSTALLED else ROOT) / "data"
PAPER = DATA / "paper"
PUBLISHED = DATA / "published"
TRACES = ROOT if INSTALLED else DATA / "traces"  # where profiles are written
NOTEBOOKS = ROOT / "notebooks"
COMMITTED = (ROOT / "results").resolve()  # in git: written by runs with the parameters there
RESULTS = Path(os.environ.get("MLLM_SCHED_RESULTS") or COMMITTED).resolve()
BUILD = ROOT / "build"  # executed notebooks, live numbers, results of other parameters; not in git
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
CACHE = _USER_CACHE / "mllm-sched" if INSTALLED else BUILD / "cache"  # exported encoders


def resolve(path: str | Path) -> Path:
    """An existing path: as given from the caller's folder, else beside ``data``.

    So ``data/published/orin_sweep_trace.csv`` is found from anywhere. Raises FileNotFoundError,
    which names both places.
    """
    given = Path(path).expanduser()
    for candidate in (given, DATA.parent / given):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"no file {path} in {Path.cwd()} or {DATA.parent}")


def need_checkout() -> None:
    """Raise FileNotFoundError if this package was installed from a wheel."""
    if INSTALLED:
        raise FileNotFoundError(
            "this needs a checkout of the repository: run it there, or name it in MLLM_SCHED_ROOT"
        )
