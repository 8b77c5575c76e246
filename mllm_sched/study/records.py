"""What a run of a notebook depended on and wrote, so that it need not be run again.

The record of a run lies beside the executed notebook. It exists only if the run came to its end and
nothing that it depends on was written meanwhile.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat

from mllm_sched import paths
from mllm_sched.files import write_whole
from mllm_sched.study.dependencies import PACKAGE, code_files
from mllm_sched.study.provenance import checksum, saved
from mllm_sched.study.versions import package_versions

# Which notebook reads what others wrote, or a file at the root; patterns. A notebook may read only
# those with a lower number, since these run before it.
JUDGED = ("claims.yaml", "results/*/claims.csv")  # what a verdict hangs on
READS: Mapping[str, tuple[str, ...]] = {
    "12_explorer": ("results/10_savings/runs.csv",),
    "13_sensitivity": JUDGED,
    "99_claims": (*JUDGED, "results/13_sensitivity/verdicts.csv"),
}
SUMS = paths.DATA / "SHA256SUMS"
LOCK = paths.ROOT / "requirements.lock"
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
        versions = {"Python": platform.python_version(), **package_versions()}
        return {
            f"the code of {self.notebook.name}": sha256(self._source.encode()).hexdigest(),
            **{f"parameter {name}": repr(value) for name, value in self.parameters.items()},
            **{f"the version of {name}": value for name, value in versions.items()},
            "the folder of results": str(self.results),
            **{_said(path): checksum(path) for path in self._files},
        }

    @cached_property
    def _written_at(self) -> dict[str, str]:
        """When each file that the run depends on was written: one may be edited and put back."""
        return {_said(path): str(path.stat().st_mtime_ns) for path in self._files}

    @cached_property
    def _source(self) -> str:
        """The code of the notebook; prose and outputs do not count."""
        cells = nbformat.read(self.notebook, as_version=4).cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")

    @cached_property
    def _files(self) -> list[Path]:
        needed = [*code_files(self._source), LOCK, *_data()]
        return [*needed, *self._given_files(), *self._read_files()]

    @cached_property
    def digest(self) -> str:
        """Of all parts together."""
        return sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def why(self) -> str:
        """Why it must run; empty if everything is as its record says."""
        try:
            parts, written, _ = self._recorded()
        except FileNotFoundError:
            return "no finished run on record"
        except (ValueError, TypeError, KeyError):
            return f"its record {self.record.name} cannot be read"
        changes = [*_differences(parts, self.parts), *_differences(written, self._written())]
        return f"stale: {_some(changes)}" if changes else ""

    @property
    def saved_s(self) -> float:
        """How long the run on record took, seconds."""
        return self._recorded()[2]

    def _recorded(self) -> tuple[dict[str, str], dict[str, str], float]:
        """What it depended on, what it wrote, and seconds; an error if that is no record."""
        facts = json.loads(self.record.read_text())
        return dict(facts["parts"]), dict(facts["written"]), float(facts["wall_s"])

    def begin(self) -> None:
        """Note what the run depends on; from now to its end it has no record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        _ = self.parts, self._written_at  # as they are now

    def meanwhile(self) -> list[str]:
        """Which parts were written since it began."""
        now = replace(self)  # which has noted nothing yet
        try:
            changes = _differences(self.parts, now.parts)
            return changes or _differences(self._written_at, now._written_at)
        except (OSError, SyntaxError, ValueError) as error:  # somebody is in the middle of it
            return [f"a part became unreadable ({error})"]

    def finish(self, wall_s: float) -> str:
        """Record a run that came to its end.

        Returns
        -------
        Empty, or why there is no record: a part was written while it ran. Then nobody knows which
        of its versions the results are of.
        """
        if changes := self.meanwhile():
            return f"while it ran {_some(changes)}"
        facts = {"parts": self.parts, "written": self._written(), "wall_s": round(wall_s, 1)}
        write_whole(self.record, (json.dumps(facts, indent=2) + "\n").encode())
        return ""

    def _written(self) -> dict[str, str]:
        """Its results and the executed notebook, each with its checksum."""
        files = [*saved(self.results / self.name), self.executed]
        return {_said(path): checksum(path) for path in files if path.exists()}

    def _given_files(self) -> Iterator[Path]:
        """Files that parameters name, as ``device=trace:my.csv`` does."""
        for value in self.parameters.values():
            path = Path(str(value).removeprefix("trace:")).expanduser()
            places = (path, paths.ROOT / path, paths.TRACES / path)
            yield from (place for place in places if place.is_file())

    def _read_files(self) -> Iterator[Path]:
        for pattern in READS.get(self.name, ()):
            inside = pattern.removeprefix("results/")
            where = paths.ROOT if inside == pattern else self.results
            yield from sorted(file for file in where.glob(inside) if file.parent.name != self.name)


def _data() -> list[Path]:
    """The data that come with the repository; a table of one's own counts if it is asked for."""
    listed = [line.split(maxsplit=1)[1] for line in SUMS.read_text().splitlines()]
    files = [paths.DATA / name for name in listed if not name.endswith(".md")]
    return [path for path in files if path.exists()]


def _said(path: Path) -> str:
    """A file as a message names it."""
    for root in (paths.ROOT.resolve(), PACKAGE.parent):
        if path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix()
    return str(path)


def _some(changes: list[str]) -> str:
    """The first changes, and how many there are besides."""
    more = f", and {len(changes) - TOLD} more" if len(changes) > TOLD else ""
    return f"{', '.join(changes[:TOLD])}{more}"


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    changed = [f"{key} changed" for key in now if key in before and before[key] != now[key]]
    return [
        *changed,
        *(f"{key} is new" for key in now if key not in before),
        *(f"{key} is gone" for key in before if key not in now),
    ]
