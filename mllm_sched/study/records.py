"""What a run of a notebook depended on and wrote, so that it need not be run again.

The record of a run lies beside the executed notebook. It exists only if the run came to its end.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat

from mllm_sched import paths
from mllm_sched.files import write_whole
from mllm_sched.study.dependencies import PACKAGE, code_files
from mllm_sched.study.provenance import checksum

# Which notebook reads what others wrote, or a file at the root; patterns. A notebook may read only
# those with a lower number, since these run before it.
JUDGED = ("claims.yaml", "results/*/claims.csv")  # what a verdict hangs on
READS: Mapping[str, tuple[str, ...]] = {
    "12_explorer": ("results/10_savings/runs.csv",),
    "13_sensitivity": JUDGED,
    "99_claims": (*JUDGED, "results/13_sensitivity/verdicts.csv"),
}
TOLD = 3  # changes that a message names; the others are counted


@dataclass(frozen=True)
class Run:
    """A notebook with its parameters, and where it leaves what.

    Attributes
    ----------
    notebook
        Its file.
    parameters
        Those that differ from its own.
    results
        Folder in which its folder of results is.
    folder
        Where it is executed; its record is kept there.
    """

    notebook: Path
    parameters: Mapping[str, Any]
    results: Path
    folder: Path

    @property
    def name(self) -> str:
        """Of the notebook, without its ending."""
        return self.notebook.stem

    @property
    def executed(self) -> Path:
        """The notebook with its outputs."""
        return self.folder / self.notebook.name

    @property
    def record(self) -> Path:
        """The record of the last run that came to its end."""
        return self.folder / f"{self.name}.json"

    @cached_property
    def parts(self) -> dict[str, str]:
        """Everything that the run depends on, each with a digest or its value, as it is now."""
        source = _source(self.notebook)
        files = [*code_files(source), *_data(), *self._given_files(), *self._read_files()]
        return {
            f"the code of {self.notebook.name}": sha256(source.encode()).hexdigest(),
            **{f"parameter {name}": repr(value) for name, value in self.parameters.items()},
            "the version of Python": platform.python_version(),
            "the folder of results": str(self.results),
            **{_said(path): checksum(path) for path in files},
        }

    @cached_property
    def digest(self) -> str:
        """Of all parts together."""
        return sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def why(self) -> str:
        """Why it must run; empty if everything is as its record says."""
        try:
            before = json.loads(self.record.read_text())
            parts, written = before["parts"], before["written"]
        except FileNotFoundError:
            return "no finished run on record"
        except (ValueError, TypeError, KeyError):
            return f"its record {self.record.name} cannot be read"
        changes = [*_differences(parts, self.parts), *_differences(written, self._written())]
        more = f", and {len(changes) - TOLD} more" if len(changes) > TOLD else ""
        return f"stale: {', '.join(changes[:TOLD])}{more}" if changes else ""

    @property
    def saved_s(self) -> float:
        """How long the run on record took, seconds."""
        return float(json.loads(self.record.read_text())["wall_s"])

    def begin(self) -> None:
        """Note what the run depends on; from now to its end it has no record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        _ = self.parts  # as they are now: a file edited while it runs makes it stale

    def finish(self, wall_s: float) -> None:
        """Record a run that came to its end."""
        facts = {"parts": self.parts, "written": self._written(), "wall_s": round(wall_s, 1)}
        write_whole(self.record, (json.dumps(facts, indent=2) + "\n").encode())

    def _written(self) -> dict[str, str]:
        """Its results and the executed notebook, each with its checksum."""
        files = [path for path in (self.results / self.name).glob("*") if path.is_file()]
        files += [self.executed] if self.executed.exists() else []
        return {_said(path): checksum(path) for path in sorted(files)}

    def _given_files(self) -> Iterator[Path]:
        """Files that parameters name, as ``device=trace:my.csv`` does."""
        for value in self.parameters.values():
            path = Path(str(value).removeprefix("trace:")).expanduser()
            yield from (place for place in (path, paths.ROOT / path) if place.is_file())

    def _read_files(self) -> Iterator[Path]:
        for pattern in READS.get(self.name, ()):
            inside = pattern.removeprefix("results/")
            where = paths.ROOT if inside == pattern else self.results
            yield from sorted(where.glob(inside))


def _source(notebook: Path) -> str:
    """The code of a notebook; prose and outputs do not count."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")


def _data() -> list[Path]:
    """All data, and the versions of all packages."""
    data = [path for path in sorted(paths.DATA.rglob("*")) if path.is_file()]
    return [path for path in data if path.suffix != ".md"] + [paths.ROOT / "requirements.lock"]


def _said(path: Path) -> str:
    """A file as a message names it."""
    for root in (paths.ROOT.resolve(), PACKAGE.parent):
        if path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix()
    return str(path)


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    changed = [f"{key} changed" for key in now if key in before and before[key] != now[key]]
    return [
        *changed,
        *(f"{key} is new" for key in now if key not in before),
        *(f"{key} is gone" for key in before if key not in now),
    ]
