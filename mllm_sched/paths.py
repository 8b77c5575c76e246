"""The repository's folders, in one place."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("MLLM_SCHED_ROOT") or PACKAGE.parent).resolve()

DATA = ROOT / "data"
PAPER = DATA / "paper"
PUBLISHED = DATA / "published"
TRACES = DATA / "traces"
NOTEBOOKS = ROOT / "notebooks"
COMMITTED = ROOT / "results"  # in git: only runs with the committed parameters write here
RESULTS = Path(os.environ.get("MLLM_SCHED_RESULTS") or COMMITTED).resolve()
BUILD = ROOT / "build"  # executed notebooks and live measurements; git ignores it
CACHE = BUILD / "cache"  # exported encoders


def resolve(path: str | Path) -> Path:
    """An existing path: as given from the caller's folder, else from the repository's root.

    Raises FileNotFoundError, which names both places.
    """
    given = Path(path).expanduser()
    for candidate in (given, ROOT / given):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"no file {path} in {Path.cwd()} or {ROOT}")
