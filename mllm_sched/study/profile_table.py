"""A table of measurements on disk that survives whatever happens to a day of measuring.

It is written anew after each arm and moved into place whole, so the file is valid at any moment.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mllm_sched.arms import ArmSpace
from mllm_sched.files import locked, write_whole
from mllm_sched.measurement import HARNESS_NUMBERS, HARNESS_WORDS, read_table
from mllm_sched.study.provenance import as_csv

DISK_WAIT_S = 60.0  # at the end, for room to write what could not be written before


class ProfileTable:
    """The table on disk, always whole.

    Parameters
    ----------
    path
        CSV file; made with the first row.
    space
        The arms; their factors are the first columns.

    Attributes
    ----------
    done
        Arms that the table holds, by index, and whether they failed.

    Raises
    ------
    ValueError
        If the file is something else.
    """

    def __init__(self, path: Path, space: ArmSpace) -> None:
        self.path = path
        self.columns = [
            *space.names,
            *("modality", "encoder", "size", "background_load", "latency_s", "energy_j"),
            *("latency_sd_s", "energy_sd_j", "evidence", "energy_evidence", "failed"),
            *HARNESS_NUMBERS,
            *HARNESS_WORDS,
        ]
        self.space = space
        self.lines: list[str] = []
        self.done: dict[int, bool] = {}
        self._saved = True
        if path.exists():
            self._read()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and write the table; on a full disk, say so and keep the row for later."""
        self._add(as_csv(pd.DataFrame([row], columns=self.columns)).decode().splitlines()[1], row)
        try:
            self._write()
        except OSError as error:
            self._saved = False
            tqdm.write(
                f"cannot write {self.path}: {error.strerror}; the row is kept and written with "
                "the next",
                file=sys.stderr,
            )

    def finish(self, wait_s: float = DISK_WAIT_S) -> None:
        """Write what could not be written before.

        Raises OSError if there is still no room; all rows then stand in a file that it names.
        """
        began = time.monotonic()
        while not self._saved:
            try:
                self._write()
            except OSError as error:
                if time.monotonic() - began < wait_s:
                    time.sleep(1.0)
                    continue
                raise OSError(error.errno, f"{error.strerror}; {self._rescue()}") from error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """See that every row is on disk at the end; after an interruption without waiting."""
        try:
            yield
        except BaseException:
            self.finish(wait_s=0)
            raise
        self.finish()

    def drop_failed(self) -> None:
        """Forget the arms that failed, so that they are measured again."""
        rows = zip(self.lines, self.done.values(), strict=True)
        self.lines = [line for line, failed in rows if not failed]
        self.done = {arm: failed for arm, failed in self.done.items() if not failed}

    def _add(self, line: str, row: Mapping[str, Any]) -> None:
        self.lines.append(line)
        # By its place in the space: a level may read 1 in the file and be 1.0.
        arm = self.space.arm(**{name: row[name] for name in self.space.names})
        self.done[arm.index] = bool(row["failed"])

    def _read(self) -> None:
        header, *lines = self.path.read_text().splitlines()
        if header != ",".join(self.columns):
            raise ValueError(f"{self.path} is no profile of this device: its columns differ")
        if lines:
            for line, row in zip(lines, read_table(self.path).to_dict("records"), strict=True):
                self._add(line, row)

    def _text(self) -> str:
        return "\n".join([",".join(self.columns), *self.lines]) + "\n"

    def _write(self) -> None:
        write_whole(self.path, self._text().encode())
        self._saved = True

    def _rescue(self) -> str:
        """Put the rows wherever there is room, and say where that is."""
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False) as file:
                file.write(self._text())
            return f"all rows are in {file.name}"
        except OSError:
            print(self._text(), file=sys.stderr)
            return "all rows are printed above"


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Refuse a second process on the same table."""
    lock = locked(out.with_name(f".{out.name}.lock"))
    if lock is None:
        raise ValueError(f"another process is writing {out}")
    with lock:
        yield
