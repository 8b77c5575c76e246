"""Results on disk: tables, figures, and where they came from.

A folder of results holds its tables as CSV, its figures as SVG and as PNG, and
``provenance.json`` with the checksums of them all. What did not change but for rounding is not
rewritten, so a rerun on another processor leaves no trace. The committed results are written by
the parameters on record there alone. ``make reproduce`` with others names another folder in the
environment's MLLM_SCHED_RESULTS; a notebook run by hand with others writes to ``build/results``.
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
DIGITS = 6  # significant ones in a table; what lies beyond differs between machines
ROUNDING = 1e-5  # relative: one unit of the last of them
NOTHING = 1e-9  # what is as good as zero in a table
COUNT = re.compile(r"-?(\d{1,5}|\d{7,})")  # a whole number; one of six digits may be a rounded one
BOARD_DATA = (
    "data/calibration/agx_orin.json",
    "data/encoders/work.csv",
    "data/hyperparameters/agx_orin_sim.csv",
    "data/published/orin_module_sweep.csv",
    "data/published/orin_sweep_trace.csv",
)
RECORD = "provenance.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# Figures as files: the same figure is the same file, on any processor.
PNG_DPI = 120
MOVED = 0.05  # points, which no eye sees
SHADE = 3  # levels of 255, of a picture within a figure
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
    """Write a folder of results.

    Parameters
    ----------
    name
        Of the notebook.
    tables, figures
        By file name, without its ending; any axes of a figure stand for it.
    parameters
        Of the notebook, seeds among them: all that its numbers depend on. If they differ from those
        on record in the committed results, these stay, and the new ones go to ``build/results``.
    data
        Files that were read, relative to the repository; by default those of the simulated board.
    live
        Whether the numbers were measured just now. They then go to ``build/live``, which git
        ignores: they differ from run to run.

    Returns
    -------
    The folder.
    """
    folder = paths.BUILD / "live" / name if live else _results_folder(name, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(parameters, data=data)
    for key, table in tables.items():
        _write_table(folder / f"{key}.csv", as_csv(table))
    for key, drawn in figures.items():
        _write_figure(folder / key, drawn)
    files = {
        "tables": [f"{key}.csv" for key in tables],
        "figures": [f"{key}{ending}" for key in figures for ending in (".svg", ".png")],
    }
    _remove_others(folder, {*files["tables"], *files["figures"]})
    for kind, names in files.items():
        facts[kind] = {file: checksum(folder / file) for file in names}
    if _depends_otherwise(folder / RECORD, facts):
        write_whole(folder / RECORD, _as_json(facts).encode())
    return folder


def _results_folder(name: str, parameters: Mapping[str, Any]) -> Path:
    """Where results go: not among the committed ones if other parameters made those."""
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


def _write_table(path: Path, content: bytes) -> None:
    if path.exists() and not table_difference(path.read_text(), content.decode(), ROUNDING):
        return
    write_whole(path, content)


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


def _write_figure(stem: Path, drawn: Axes | Figure) -> None:
    """Write the SVG and the PNG of a figure, unless they are there and the SVG is the same."""
    from matplotlib.figure import Figure  # a profile is a table alone, and does without

    figure = drawn if isinstance(drawn, Figure) else cast(Figure, drawn.get_figure(root=True))
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    content = as_svg(figure)
    same = svg.exists() and same_but_for_rounding(svg.read_text(), content.decode())
    if not same:
        write_whole(svg, content)
    if not same or not png.exists():
        write_whole(png, as_png(figure))


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Results that the notebook no longer writes."""
    for path in saved(folder):
        if path.name not in {*kept, RECORD}:
            path.unlink()


def saved(folder: Path) -> list[Path]:
    """Files of a folder that ``save_results`` writes, sorted; not what others leave in it."""
    names = [RECORD, "[!.]*.csv", "[!.]*.svg", "[!.]*.png"]
    return sorted(path for name in names for path in folder.glob(name) if path.is_file())


def _depends_otherwise(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether parameters, data or results differ from those on record."""
    before, now = _record(path), json.loads(_as_json(facts))
    return any(before.get(key) != now[key] for key in ("parameters", "data", "tables", "figures"))


def _record(path: Path) -> dict[str, Any]:
    """What is on record; empty if nothing is, or the record is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


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


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(parameters: Mapping[str, Any], *, data: Iterable[str | Path] = ()) -> dict[str, Any]:
    """What a run depended on; no path or name of the machine is in it."""
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
    """A path as the repository sees it; of a file elsewhere only the name is said."""
    path = Path(file).resolve()
    root = paths.ROOT.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _git_state() -> dict[str, Any]:
    """Commit, and whether the code differs from it; results and notebooks do not count.

    An archive that was unpacked within another checkout has none.
    """
    watched = ["--", "mllm_sched", "data", "requirements.lock"]
    nothing = {"commit": "not a git checkout", "dirty": None}
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != paths.PACKAGE.parent:
            return nothing
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", *watched))}
    except (OSError, subprocess.CalledProcessError):
        return nothing


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=paths.PACKAGE.parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, coordinates in thousandths of a point.

    Beyond them there is rounding, which differs between processors. Matplotlib names shapes after
    a digest of their coordinates; here they are numbered.
    """
    import matplotlib as mpl  # whoever has a figure has it loaded

    file = BytesIO()
    nobody = {"Date": None, "Creator": None}
    with mpl.rc_context(STEADY):
        figure.savefig(file, format="svg", metadata=nobody, bbox_inches="tight")
    text = TAG.sub(lambda tag: LONG_NUMBER.sub(_rounded, tag[0]), file.getvalue().decode())
    places = {name: f"shape{place}" for place, name in enumerate(dict.fromkeys(NAME.findall(text)))}
    if places:
        known = re.compile(rf'(?<=["#])({"|".join(places)})(?=[")])')
        text = known.sub(lambda found: places[found[1]], text)
    return text.encode()


def same_but_for_rounding(before: str, now: str) -> bool:
    """Whether two figures as SVG differ by no more than rounding.

    That is 0.05 points in the numbers of their tags, and 3 of 255 levels in their pictures.
    """
    pictures = [PICTURE.findall(text) for text in (before, now)]
    if len(pictures[0]) != len(pictures[1]) or not all(map(_alike, *pictures)):
        return False
    before, now = (PICTURE.sub("", text) for text in (before, now))
    texts = [TAG.split(text) for text in (before, now)]
    tags = [NUMBER.split("".join(TAG.findall(text))) for text in (before, now)]
    if texts[0] != texts[1] or len(tags[0]) != len(tags[1]):
        return False
    pairs = list(zip(*tags, strict=True))  # words and numbers by turns
    return all(one == other for one, other in pairs[::2]) and all(
        one == other or abs(float(one) - float(other)) <= MOVED for one, other in pairs[1::2]
    )


def _alike(before: str, now: str) -> bool:
    """Whether two pictures, as PNG in base 64, look the same."""
    if before == now:
        return True
    from matplotlib.image import imread

    one, other = (imread(BytesIO(base64.b64decode(text)), format="png") for text in (before, now))
    return one.shape == other.shape and bool(abs(one - other).max() <= (SHADE + 0.5) / 255)


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, for where SVG is not shown; no version of a program is in it."""
    file = BytesIO()
    figure.savefig(
        file, format="png", dpi=PNG_DPI, metadata={"Software": None}, bbox_inches="tight"
    )
    return file.getvalue()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3f}".rstrip("0").rstrip(".")
