"""Measures every arm of a live device into a table that opens as ``trace:FILE``.

The table is written anew after each arm and moved into place whole, so it is valid at any moment.
Arms that it holds are not measured again, so the same call resumes an interrupted profile. The
order of the arms is random by seed, so that drift is not confounded with them.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mllm_sched.arms import Arm, ArmSpace
from mllm_sched.atomic_io import locked, write_whole
from mllm_sched.devices.live import LiveDevice
from mllm_sched.experiments.provenance import as_csv, provenance
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.window import Plan, measure
from mllm_sched.measurement import HARNESS_NUMBERS, HARNESS_WORDS, Measurement, read_table
from mllm_sched.tasks import Task

KEPT = ("latency_sd_s", "energy_sd_j", *HARNESS_NUMBERS)  # of a result, as they are


class ProfileTable:
    """The table on disk, always whole; ValueError if the file is something else."""

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
        self.done: dict[int, bool] = {}  # by index of an arm: whether it failed
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
            told = f"cannot write {self.path}: {error.strerror}; the row is kept for the next write"
            tqdm.write(told, file=sys.stderr)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """See that every row is on disk at the end, also after an interruption.

        Raises OSError if there is still no room; all rows then stand in a file that it names.
        """
        try:
            yield
        finally:
            try:
                if not self._saved:
                    self._write()
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}; {self._rescue()}") from error

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
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False) as file:
                file.write(self._text())
            return f"all rows are in {file.name}"
        except OSError:
            print(self._text(), file=sys.stderr)
            return "all rows are printed above"


def profile(
    device: LiveDevice,
    task: Task,
    out: Path,
    plan: Plan,
    *,
    arms: Sequence[Arm] | None = None,
    seed: int = 0,
    retry_failed: bool = False,
) -> Path:
    """Measure arms, a row each, in an order drawn by seed.

    An arm that fails is a row with its reason. ``NAME.json`` beside the table says what it was
    measured with. With ``retry_failed`` arms that failed before are measured again.

    Raises ValueError if the table was made with other settings, another process is writing it, or
    its name does not end in .csv; MissingPackage if what runs encoders is not installed; OSError if
    the disk stays full: what was measured then stands in another file, which is named.
    """
    device.require_packages()
    if out.suffix != ".csv":
        raise ValueError(f"{out}: expected a name that ends in .csv")
    arms = list(device.space if arms is None else arms)
    settings = {  # what must be the same for two sittings to make one table
        "device": device.name,
        "encoder": task.encoder,
        "meter": device.meter.source,
        "plan": asdict(plan),
        "arms": [str(arm) for arm in arms],
        "seed": seed,
    }
    lock = locked(out.with_name(f".{out.name}.lock"))
    if lock is None:
        raise ValueError(f"another process is writing {out}")
    with lock:
        table = ProfileTable(out, device.space)
        record = _record(out, settings, fresh=not table.lines)
        if retry_failed:
            table.drop_failed()
        todo = [each for each in order(arms, seed) if each[1].index not in table.done]
        if todo:
            facts = provenance({})
            kept = ("utc", "git", "python", "packages", "machine")
            record["sittings"].append({"state": device.state()} | {key: facts[key] for key in kept})
            write_whole(out.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
        cool_c = device.thermals.hottest_c() + plan.cool_margin_c
        done = len(arms) - len(todo)
        with table.kept(), tqdm(total=len(arms), initial=done, unit="arm") as bar:
            for position, arm in todo:
                bar.set_postfix_str(str(arm))
                device.thermals.cool_down(cool_c, plan.cool_down_s)
                table.append(_row(device, task, arm, plan, position))
                bar.update()
    return out


def order(arms: Sequence[Arm], seed: int) -> list[tuple[int, Arm]]:
    """Arms with their positions in the order drawn by seed."""
    drawn = np.random.default_rng(seed).permutation(len(arms))
    return [(position, arms[index]) for position, index in enumerate(drawn)]


def dry_run(device: LiveDevice, plan: Plan, arms: Sequence[Arm], seed: int) -> pd.DataFrame:
    """Arms in the order of ``profile``, with least and most minutes, without opening encoders."""
    least, most = plan.seconds(device.meter)
    rows = [{"position": position, **arm.levels} for position, arm in order(arms, seed)]
    table = pd.DataFrame(rows)
    done = table["position"] + 1
    return table.assign(minutes_at_least=done * least / 60, minutes_at_most=done * most / 60)


def chosen_arms(space: ArmSpace, levels: Mapping[str, Sequence[str]]) -> list[Arm]:
    """Arms with these levels, given as text; ValueError names an unknown factor or level."""
    for name, wanted in levels.items():
        known = [str(level) for level in space.factor(name).levels]
        if unknown := [text for text in wanted if text not in known]:
            raise ValueError(f"{name}={unknown[0]}: expected some of {', '.join(known)}")
    return [
        arm
        for arm in space
        if all(str(arm.levels[name]) in wanted for name, wanted in levels.items())
    ]


def _row(device: LiveDevice, task: Task, arm: Arm, plan: Plan, position: int) -> dict[str, Any]:
    evidence = device.evidence, device.energy_evidence
    facts: dict[str, Any] = {"position": position}
    facts["utc"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        facts |= device.prepare(arm)
        work, items = device.work(arm), device.batch(arm)
        result = measure(work, device.meter, device.thermals, plan, items)
    except HarnessError as error:
        device.note(error)
        failed = " ".join(str(error).split())  # a row is one line
        return {**Measurement(arm, task, math.nan, math.nan, *evidence, failed).row(), **facts}
    done = Measurement(arm, task, result.latency_s.mean, result.energy_j.mean, *evidence, "")
    numbers = {name: value for name, value in asdict(result).items() if name in KEPT}
    return {
        **done.row(),
        **numbers,
        "latency_half_s": result.latency_s.half,
        "energy_half_j": result.energy_j.half,
        "marginal_energy_j": result.marginal_j.mean,
        "marginal_half_j": result.marginal_j.half,
        "throttled": "yes" if result.throttled else "no",
        "notes": "; ".join(result.notes),
        **facts,
    }


def _record(out: Path, settings: dict[str, Any], fresh: bool) -> dict[str, Any]:
    beside = out.with_suffix(".json")
    if fresh or not beside.exists():
        return {"settings": settings, "sittings": []}
    record: dict[str, Any] = json.loads(beside.read_text())
    before = record["settings"]
    differing = [key for key, value in settings.items() if before.get(key) != value]
    if differing:
        told = f"{out} was made with another {', '.join(differing)}"
        raise ValueError(f"{told}; give another file, or remove this one")
    return record
