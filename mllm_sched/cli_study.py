"""The commands that run and measure arms: names, run, sweep, profile."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from mllm_sched import paths
from mllm_sched.devices import device_names, open_device
from mllm_sched.devices.live import LiveDevice
from mllm_sched.experiments import runner
from mllm_sched.experiments.comparison import compare, paper_lineup, task_for, trusted_arms
from mllm_sched.experiments.metrics import per_run
from mllm_sched.experiments.profiling import chosen_arms, dry_run
from mllm_sched.experiments.profiling import profile as measure_arms
from mllm_sched.experiments.provenance import as_csv
from mllm_sched.harness.window import Plan
from mllm_sched.measurement import read_table
from mllm_sched.schedulers import scheduler_names

# Options of live devices: the argument of `open_device`, and which devices take it.
LIVE = {
    "component": ("component", ["host"]),
    "board": ("root", ["agx-orin"]),
    "rate": ("rate_hz", ["agx-orin"]),
    "no_caps": ("imitate", ["agx-orin"]),
    "timeout": ("timeout_s", ["host", "agx-orin"]),
}


def names(options: argparse.Namespace) -> None:
    """What can be named."""
    print("devices:    " + ", ".join(device_names()))
    print("schedulers: " + ", ".join(scheduler_names()))


def run(options: argparse.Namespace) -> int:
    """One scheduler, one device, one seed; 1 if the device broke, and what it did is kept."""
    device = open_device(options.device, seed=options.seed, **_live_settings(options))
    task = task_for(device, options.encoder)
    limits = {"latency_s": options.limit}
    rule = runner.Rule(options.scheduler, options.scheduler)
    try:
        table = runner.run(
            *(rule, device, task, options.steps),
            limits=limits,
            seed=options.seed,
            seeds=trusted_arms(device),
        )
    except runner.RunStopped as stopped:
        _save(stopped.table, options.out)
        print(f"mllm-sched: {stopped}", file=sys.stderr)
        return 1
    finally:
        device.close()
    evidence = f"latency {device.evidence}, energy {device.energy_evidence}"
    _report(per_run(table, limits).drop(columns="seed"), f"{task.encoder}: {evidence}")
    _save(table, options.out)
    return 0


def sweep(options: argparse.Namespace) -> None:
    """The paper's line-up with many seeds."""
    device = open_device(options.device)
    task = task_for(device, options.encoder)
    compared = compare(
        *(options.device, task, paper_lineup()),
        steps=options.steps,
        seeds=options.seeds,
        limit_s=options.limit,
        trusted=trusted_arms(device),
        dask=options.dask,
    )
    _report(compared.overview().reset_index(), f"{task.encoder}: {compared.evidence}")
    _save(compared.table, options.out)


def profile(options: argparse.Namespace) -> None:
    """Measure every arm of a live device."""
    names = {field.name for field in fields(Plan)} & set(vars(options))
    plan = Plan(**{name: getattr(options, name) for name in names})
    device = open_device(options.device, **_live_settings(options))
    if not isinstance(device, LiveDevice):
        raise ValueError(f"device {options.device!r} is not live: there is nothing to measure")
    with closing(device):
        task = task_for(device)
        arms = chosen_arms(device.space, _levels(options.levels))
        out = options.out or _trace_of(device)
        print(f"{len(arms)} arms, latency {device.evidence}, energy {device.energy_evidence}")
        print(f"meter: {device.meter.source}")
        if options.dry_run:
            print(dry_run(device, plan, arms, options.seed).round(1).to_string(index=False))
            return
        again = options.retry_failed
        measure_arms(device, task, out, plan, arms=arms, seed=options.seed, retry_failed=again)
        table = read_table(out)
        print(f"{len(table)} arms in {out}, {int((table['failed'] != '').sum())} of them failed")


def _live_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a live device is opened with; others take the encoder with every task."""
    settings: dict[str, Any] = {}
    for option, (name, devices) in LIVE.items():
        value = getattr(options, option)
        if value is None or value is False:
            continue
        if options.device not in devices:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag} is for {' and '.join(devices)}, not for {options.device}")
        settings[name] = False if option == "no_caps" else value
    if options.device in LIVE["timeout"][1] and options.encoder:
        settings["encoder"] = options.encoder
    return settings


def _trace_of(device: LiveDevice) -> Path:
    encoder = re.sub(r"[^\w.-]+", "-", "".join(device.modalities))
    evidence = f"latency-{device.evidence}_energy-{device.energy_evidence}"
    return paths.TRACES / f"{device.name}_{encoder}_{evidence}.csv"


def _levels(options: Sequence[str]) -> dict[str, list[str]]:
    pairs = [option.partition("=") for option in options]
    if wrong := [option for option, (_, sign, _) in zip(options, pairs, strict=True) if not sign]:
        raise ValueError(f"--levels {wrong[0]}: expected FACTOR=A,B")
    return {name: texts.split(",") for name, _, texts in pairs}


def _report(table: pd.DataFrame, title: str) -> None:
    print(title)
    print(table.round(4).to_string(index=False))


def _save(table: pd.DataFrame, path: Path | None) -> None:
    if path is not None:
        path.write_bytes(as_csv(table))
        print(f"{len(table)} rows in {path}", file=sys.stderr)
