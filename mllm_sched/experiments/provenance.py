"""Results on disk: tables, figures, and where they came from.

A folder of results holds tables as CSV, figures as SVG and PNG, and ``provenance.json`` with the
checksums of them all. What changed by no more than rounding is not rewritten, so a rerun on another
processor leaves no trace. The committed results are written only by the parameters on record there;
those of others go to ``build/results``, or where the environment's MLLM_SCHED_RESULTS says.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import psutil
from packaging.requirements import Requirement

from mllm_sched import paths
from mllm_sched.atomic_io import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECORDING = "MLLM_SCHED_RECORD"  # set by `make notebooks`: new parameters become the committed ones
RECORD = "provenance.json"
BOARD_DATA = (
    "data/calibration/agx_orin.json",
    "data/encoders/work.csv",
    "data/hyperparameters/agx_orin_sim.csv",
    "data/published/orin_module_sweep.csv",
    "data/published/orin_sweep_trace.csv",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

DIGITS = 6  # significant ones in a table; what lies beyond differs between machines
ROUNDING = 1e-5  # relative: one unit of the last of them
NOTHING = 1e-9  # what is as good as zero in a table
COUNT = re.compile(r"-?(\d{1,5}|\d{7,})")  # a whole number; one of six digits may be a rounded one

PNG_DPI = 120
MOVED = 0.05  # points by which a figure may move, which nobody sees
SHADE = 3  # levels of 255 by which a picture within a figure may differ
STEADY: dict[Any, Any] = {"svg.hashsalt": "mllm-sched", "svg.fonttype": "none"}
TAG = re.compile(r"<[^>]*>")
LONG_NUMBER = re.compile(r"\d+\.\d{4,}")
NUMBER = re.compile(r"(-?\d+\.?\d*)")
PICTURE = re.compile(r'(?<="data:image/png;base64,)[^"]*')
NAME = re.compile(r'\bid="(\w*[0-9a-f]{10})"')  # as Matplotlib makes them, from a digest


def save_results(
    name: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Axes | Figure],
    parameters: Mapping[str, Any],
    *,
    data: Iterable[str | Path] = BOARD_DATA,
    live: bool = False,
) -> Path:
    """Write a folder of results, and return it.

    ``tables`` and ``figures`` are by file name without its ending; any axes of a figure stand for
    it. ``parameters`` are all that the numbers depend on, ``data`` the files that were read.
    ``live`` numbers were measured just now, and go to ``build/live``, which git ignores.
    """
    folder = paths.BUILD / "live" / name if live else _results_folder(name, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(parameters, data=data)
    for key, table in tables.items():
        path, content = folder / f"{key}.csv", as_csv(table)
        if not path.exists() or table_difference(path.read_text(), content.decode(), ROUNDING):
            write_whole(path, content)
    for key, drawn in figures.items():
        _write_figure(folder / key, drawn)
    files = {
        "tables": [f"{key}.csv" for key in tables],
        "figures": [f"{key}{ending}" for key in figures for ending in (".svg", ".png")],
    }
    for pattern in ("[!.]*.csv", "[!.]*.svg", "[!.]*.png"):
        for path in folder.glob(pattern):
            if path.name not in files["tables"] + files["figures"]:
                path.unlink()  # no longer written
    for kind, names in files.items():
        facts[kind] = {file: checksum(folder / file) for file in names}
    before, now = _record(folder / RECORD), json.loads(_as_json(facts))
    if any(before.get(key) != now[key] for key in ("parameters", "data", "tables", "figures")):
        write_whole(folder / RECORD, _as_json(facts).encode())
    return folder


def _results_folder(name: str, parameters: Mapping[str, Any]) -> Path:
    # Not among the committed results if other parameters made those.
    folder = paths.RESULTS / name
    if paths.RESULTS != paths.COMMITTED or os.environ.get(RECORDING):
        return folder
    now = json.loads(_as_json(parameters))
    before = _record(folder / RECORD).get("parameters", {} if any(folder.glob("*.csv")) else now)
    if before == now:
        return folder
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    other = paths.BUILD / "results" / name
    differences = (f"{key} {before.get(key)} there, {now.get(key)} here" for key in changed)
    print(f"other parameters than in {_within(folder)}: {', '.join(differences)}", end="; ")
    print(f"written to {_within(other)}")
    return other


def _record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, default=str) + "\n"


# -- Tables


def as_csv(table: pd.DataFrame) -> bytes:
    """A table as text, rounded to the digits that other machines repeat."""
    floats = table.select_dtypes("float")
    table = table.copy()
    table[floats.columns] = floats.mask(floats.abs() < 1e-12, 0.0)  # rounding
    text = table.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
    return text.encode()


def table_difference(before: str, now: str, relative: float) -> str:
    """The first difference between two tables as CSV that is more than rounding; empty if none.

    Numbers may differ by ``relative``; counts, texts, columns and the number of rows may not.
    """
    tables = [list(csv.reader(text.splitlines())) for text in (before, now)]
    header = tables[0][0] if tables[0] else []
    for line, (row, new) in enumerate(zip_longest(*tables), start=1):
        if row is None or new is None or len(row) != len(new):
            texts = ("nothing" if cells is None else repr(",".join(cells)) for cells in (row, new))
            return f"line {line}: {' became '.join(texts)}"
        for column, cell, other in zip(header, row, new, strict=False):
            if not _same_cell(cell, other, relative):
                return f"line {line}, {column}: {cell!r} became {other!r}"
    return ""


def _same_cell(before: str, now: str, relative: float) -> bool:
    if before == now:
        return True
    if COUNT.fullmatch(before) and COUNT.fullmatch(now):
        return False
    try:
        return math.isclose(float(before), float(now), rel_tol=relative, abs_tol=NOTHING)
    except ValueError:
        return False


# -- Figures; Matplotlib is imported where there is one: a profile is a table alone


def _write_figure(stem: Path, drawn: Axes | Figure) -> None:
    from matplotlib.figure import Figure

    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    content = as_svg(figure)
    same = svg.exists() and same_but_for_rounding(svg.read_text(), content.decode())
    if not same:
        write_whole(svg, content)
    if not same or not png.exists():
        write_whole(png, as_png(figure))


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, the same on any processor: coordinates rounded, shapes numbered."""
    import matplotlib as mpl

    file = BytesIO()
    with mpl.rc_context(STEADY):
        undated = {"Date": None, "Creator": None}
        figure.savefig(file, format="svg", metadata=undated, bbox_inches="tight")
    text = TAG.sub(lambda tag: LONG_NUMBER.sub(_rounded, tag[0]), file.getvalue().decode())
    places = {name: f"shape{place}" for place, name in enumerate(dict.fromkeys(NAME.findall(text)))}
    if places:
        known = re.compile(rf'(?<=["#])({"|".join(places)})(?=[")])')
        text = known.sub(lambda found: places[found[1]], text)
    return text.encode()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3f}".rstrip("0").rstrip(".")


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, for where SVG is not shown."""
    file, unnamed = BytesIO(), {"Software": None}
    figure.savefig(file, format="png", dpi=PNG_DPI, metadata=unnamed, bbox_inches="tight")
    return file.getvalue()


def same_but_for_rounding(before: str, now: str) -> bool:
    """Whether two SVGs differ by at most 0.05 points, and their pictures by 3 of 255 levels."""
    pictures = [PICTURE.findall(text) for text in (before, now)]
    if len(pictures[0]) != len(pictures[1]) or not all(map(_alike, *pictures)):
        return False
    before, now = (PICTURE.sub("", text) for text in (before, now))
    tags = [NUMBER.split("".join(TAG.findall(text))) for text in (before, now)]
    if TAG.split(before) != TAG.split(now) or len(tags[0]) != len(tags[1]):
        return False
    pairs = list(zip(*tags, strict=True))  # words and numbers by turns
    return all(one == other for one, other in pairs[::2]) and all(
        one == other or abs(float(one) - float(other)) <= MOVED for one, other in pairs[1::2]
    )


def _alike(before: str, now: str) -> bool:
    if before == now:
        return True
    from matplotlib.image import imread

    one, other = (imread(BytesIO(base64.b64decode(text)), format="png") for text in (before, now))
    return one.shape == other.shape and bool(abs(one - other).max() <= (SHADE + 0.5) / 255)


# -- Provenance


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(parameters: Mapping[str, Any], *, data: Iterable[str | Path] = ()) -> dict[str, Any]:
    """What a run depended on, without paths or names of the machine."""
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "parameters": dict(parameters),
        "data": {_within(path): checksum(path) for path in map(paths.resolve, data)},
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


def package_versions() -> dict[str, str]:
    """Versions of this package's direct dependencies, as installed; not of developers' tools."""
    wanted = [Requirement(line) for line in requires("mllm-sched") or []]
    names = [need.name for need in wanted if "dev" not in str(need.marker)]
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):  # of an extra
            found[name] = version(name)
    return found


def _within(file: str | Path) -> str:
    """A path within the repository; of a file elsewhere only the name."""
    path = Path(file).resolve()
    root = paths.ROOT.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _git_state() -> dict[str, Any]:
    """Commit, and whether code or data differ from it; none where another checkout is around."""
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        if Path(_git("rev-parse", "--show-toplevel")) == paths.PACKAGE.parent:
            watched = ("--", "mllm_sched", "data", "requirements.lock")
            dirty = bool(_git("status", "--porcelain", *watched))
            return {"commit": _git("rev-parse", "HEAD"), "dirty": dirty}
    return {"commit": "not a git checkout", "dirty": None}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=paths.PACKAGE.parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()
