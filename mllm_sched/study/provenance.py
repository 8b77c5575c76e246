"""Results on disk: tables, figures, and where they came from.

A folder of results holds its tables as CSV, its figures as SVG and as PNG, and
``provenance.json`` with the checksums of them all. Nothing is rewritten that did not change, so a
rerun that gives the same numbers leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, cast

import pandas as pd
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from packaging.requirements import Requirement

from mllm_sched import paths
from mllm_sched.study.figures import as_png, as_svg

DIGITS = 6  # significant ones in a table; what lies beyond differs between machines
BOARD_DATA = (
    "data/calibration/agx_orin.json",
    "data/encoders/work.csv",
    "data/published/orin_module_sweep.csv",
    "data/published/orin_sweep_trace.csv",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def save_results(
    name: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Axes | Figure],
    parameters: Mapping[str, Any],
    *,
    data: Iterable[str | Path] = BOARD_DATA,
    live: bool = False,
) -> Path:
    """Write a folder of results.

    Parameters
    ----------
    name
        Of the notebook.
    tables, figures
        By file name, without its ending; any axes of a figure stand for it.
    parameters
        Of the notebook, seeds among them.
    data
        Files that were read, relative to the repository; by default those of the simulated board.
    live
        Whether the numbers were measured just now. They then go to ``build/live``, which git
        ignores: they differ from run to run.

    Returns
    -------
    The folder.
    """
    folder = (paths.BUILD / "live" if live else paths.RESULTS) / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(parameters, data=data)
    contents = {
        "tables": {f"{key}.csv": as_csv(table) for key, table in tables.items()},
        "figures": dict(file for key, drawn in figures.items() for file in _pictures(key, drawn)),
    }
    files = contents["tables"] | contents["figures"]
    written = [_write_if_changed(folder / file, content) for file, content in files.items()]
    _remove_others(folder, set(files))
    for kind, those in contents.items():
        facts[kind] = {file: hashlib.sha256(content).hexdigest() for file, content in those.items()}
    record = folder / "provenance.json"
    if any(written) or _depends_otherwise(record, facts):
        record.write_text(_as_json(facts))
    return folder


def _pictures(key: str, drawn: Axes | Figure) -> list[tuple[str, bytes]]:
    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    return [(f"{key}.svg", as_svg(figure)), (f"{key}.png", as_png(figure))]


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Results that the notebook no longer writes."""
    for path in folder.iterdir():
        if path.suffix in (".csv", ".svg", ".png") and path.name not in kept:
            path.unlink()


def _depends_otherwise(record: Path, facts: Mapping[str, Any]) -> bool:
    """Whether parameters or data differ from those on record, though no result did."""
    if not record.exists():
        return True
    before, now = json.loads(record.read_text()), json.loads(_as_json(facts))
    return any(before.get(key) != now[key] for key in ("parameters", "data", "tables", "figures"))


def _as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, default=str) + "\n"


def as_csv(table: pd.DataFrame) -> bytes:
    """A table as text, rounded to the digits that can be repeated elsewhere."""
    # A difference such as 1e-17 is rounding, and would print another 1e-17 elsewhere.
    cleaned = table.copy()
    for column in cleaned.select_dtypes("number"):
        if cleaned[column].dtype.kind == "f":
            cleaned[column] = cleaned[column].mask(cleaned[column].abs() < 1e-12, 0.0)
    text = cleaned.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
    return text.encode()


def _write_if_changed(path: Path, content: bytes) -> bool:
    if path.exists() and path.read_bytes() == content:
        return False
    path.write_bytes(content)
    return True


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(parameters: Mapping[str, Any], *, data: Iterable[str | Path] = ()) -> dict[str, Any]:
    """What a run depended on; no path or name of the machine is in it."""
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "parameters": dict(parameters),
        "data": {_within(file): checksum(paths.resolve(file)) for file in data},
        "python": platform.python_version(),
        "packages": package_versions(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "threads": {name: os.environ.get(name, "") for name in THREAD_VARIABLES},
        },
        "wall_s": round(time.time() - psutil.Process().create_time(), 1),  # of this process
    }


def _within(file: str | Path) -> str:
    """A path as the repository sees it; of a file elsewhere only the name is said."""
    path = paths.resolve(file).resolve()
    root = paths.ROOT.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def package_versions() -> dict[str, str]:
    """Versions of this package's direct dependencies."""
    wanted = [Requirement(line) for line in requires("mllm-sched") or []]
    return {need.name: version(need.name) for need in wanted if "extra" not in str(need.marker)}


def _git_state() -> dict[str, Any]:
    """Commit, and whether the code differs from it; results and notebooks do not count."""
    watched = ["--", "mllm_sched", "data", "requirements.lock"]
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", *watched))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "not a git checkout", "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=paths.ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
