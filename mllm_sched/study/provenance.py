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
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import psutil

from mllm_sched import paths
from mllm_sched.files import write_whole
from mllm_sched.study.dependencies import PACKAGE
from mllm_sched.study.figures import as_png, as_svg
from mllm_sched.study.versions import package_versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGITS = 6  # significant ones in a table; what lies beyond differs between machines
BOARD_DATA = (
    "data/calibration/agx_orin.json",
    "data/encoders/work.csv",
    "data/published/orin_module_sweep.csv",
    "data/published/orin_sweep_trace.csv",
)
RECORD = "provenance.json"
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
    record = folder / RECORD
    if any(written) or _depends_otherwise(record, facts):
        write_whole(record, _as_json(facts).encode())
    return folder


def _pictures(key: str, drawn: Axes | Figure) -> list[tuple[str, bytes]]:
    from matplotlib.figure import Figure  # a profile is a table alone, and does without

    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    return [(f"{key}.svg", as_svg(figure)), (f"{key}.png", as_png(figure))]


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Results that the notebook no longer writes."""
    for path in saved(folder):
        if path.name not in {*kept, RECORD}:
            path.unlink()


def saved(folder: Path) -> list[Path]:
    """Files of a folder that ``save_results`` writes, sorted; not what others leave in it."""
    names = [RECORD, "[!.]*.csv", "[!.]*.svg", "[!.]*.png"]
    return sorted(path for name in names for path in folder.glob(name) if path.is_file())


def _depends_otherwise(record: Path, facts: Mapping[str, Any]) -> bool:
    """Whether parameters or data differ from those on record, though no result did."""
    try:
        before = dict(json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return True  # none, or a damaged one
    now = json.loads(_as_json(facts))
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
    write_whole(path, content)
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


def _git_state() -> dict[str, Any]:
    """Commit, and whether the code differs from it; results and notebooks do not count.

    An archive that was unpacked within another checkout has none.
    """
    watched = ["--", "mllm_sched", "data", "requirements.lock"]
    nothing = {"commit": "not a git checkout", "dirty": None}
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != PACKAGE.parent:
            return nothing
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", *watched))}
    except (OSError, subprocess.CalledProcessError):
        return nothing


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
