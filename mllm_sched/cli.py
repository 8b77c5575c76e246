"""The command ``mllm-sched``: one run or many, on any device, from a shell."""

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

from mllm_sched import cli_edge, cli_pipeline, paths
from mllm_sched.devices import device_names, open_device
from mllm_sched.devices.live import LiveDevice
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.window import Plan
from mllm_sched.measurement import TableError, read_table
from mllm_sched.pipeline.node_errors import NodeError
from mllm_sched.schedulers import scheduler_names
from mllm_sched.study import claims
from mllm_sched.study.comparison import compare
from mllm_sched.study.lineup import paper_lineup, task_for, trusted_arms
from mllm_sched.study.metrics import per_run
from mllm_sched.study.profiling import chosen_arms, dry_run, profile
from mllm_sched.study.provenance import as_csv
from mllm_sched.study.runner import Rule, RunStopped, run

# Live devices, and the options that each takes beside the encoder.
LIVE = {
    "host": ("component", "timeout_s"),
    "agx-orin": ("root", "rate_hz", "imitate", "timeout_s"),
}

FLAGS = {
    "component": "--component",
    "root": "--board",
    "rate_hz": "--rate",
    "imitate": "--no-caps",
    "timeout_s": "--timeout",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    Exit status: 0, or 1 if a device broke, or 2 if the call was wrong; then one line says why.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options) or 0)
    except RunStopped as error:
        _save(error.table, options.out)
        return _complain(error, 1)
    except (ValueError, TypeError, TableError, HarnessError, NodeError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("stopped; the same call goes on where it was", 130)


def _complain(error: Exception | str, status: int) -> int:
    print(f"mllm-sched: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mllm-sched", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    names = commands.add_parser("names", help="list devices and schedulers")
    names.set_defaults(command=_names)

    single = commands.add_parser("run", help="one scheduler, one device, one seed")
    _common(single)
    _live_options(single)
    single.add_argument("--scheduler", default="safe-gp-ucb", metavar="NAME")
    single.add_argument("--seed", type=int, default=0)
    single.set_defaults(command=_run)

    many = commands.add_parser("sweep", help="the paper's line-up with many seeds")
    _common(many)
    many.add_argument("--seeds", type=int, default=20, help="how many (default %(default)s)")
    many.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler, to run there")
    many.set_defaults(command=_sweep)

    measured = commands.add_parser("profile", help="measure every arm of a live device")
    _profile_options(measured)
    measured.set_defaults(command=_profile)

    cli_pipeline.add_commands(commands)
    cli_edge.add_commands(commands)

    judged = commands.add_parser("claims", help="the paper's claims and their verdicts")
    judged.set_defaults(command=lambda options: claims.main(["--print"]))
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="agx-orin-sim", metavar="NAME")
    parser.add_argument("--encoder", default="", metavar="NAME", help="default: the device's first")
    parser.add_argument("--limit", type=float, required=True, metavar="SECONDS", help="on latency")
    parser.add_argument("--steps", type=int, default=1000, help="tasks (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="every task, one row each")


def _profile_options(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    add = parser.add_argument
    add("--device", default="host", metavar="NAME", help="host or agx-orin")
    add("--encoder", default="", metavar="NAME", help="default: the device's own")
    add("--out", type=Path, metavar="FILE.csv", help="default: in data/traces")
    add("--seed", type=int, default=0, help="of the order of the arms")
    add("--levels", action="append", default=[], metavar="FACTOR=A,B", help="measure only these")
    add("--dry-run", action="store_true", help="list the arms and the time they take")
    add("--retry-failed", action="store_true", help="measure again what failed before")
    _live_options(parser)
    for name, text in {
        "window_s": "length of a window, seconds; never below what the meter needs",
        "idle_s": "length of the idle windows, seconds, as long as the meter needs; 0 for none",
        "target": "relative half-width of the 95 %% interval to reach",
        "windows": "first windows, which decide how many are needed",
        "max_windows": "most windows",
        "warm_up_s": "longest warm-up, seconds",
        "cool_down_s": "longest wait for the machine to cool, seconds",
    }.items():
        default = getattr(plan, name)
        flag, kind = f"--{name.replace('_', '-')}", type(default)
        add(flag, type=kind, default=default, metavar="N", help=f"{text} (default {default:g})")


def _live_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--component", metavar="NAME", help="of the host: cpu (default) or gpu")
    add("--board", metavar="FOLDER", help="root of the board's files, for an imitation")
    add("--rate", type=float, metavar="HZ", help="of reading the board's sensors (default 100)")
    add("--no-caps", action="store_true", help="refuse power levels that need a reboot")
    add("--timeout", type=float, metavar="SECONDS", help="after which a call hangs (default 60)")


def _names(options: argparse.Namespace) -> None:
    print("devices:    " + ", ".join(device_names()))
    print("schedulers: " + ", ".join(scheduler_names()))


def _run(options: argparse.Namespace) -> None:
    device = open_device(options.device, seed=options.seed, **_live_settings(options))
    task = task_for(device, options.encoder)
    limits = {"latency_s": options.limit}
    rule = Rule(options.scheduler, options.scheduler)
    trusted = trusted_arms(device)
    try:
        table = run(
            rule, device, task, options.steps, limits=limits, seed=options.seed, seeds=trusted
        )
    finally:
        device.close()
    evidence = f"latency {device.evidence}, energy {device.energy_evidence}"
    _report(per_run(table, limits).drop(columns="seed"), f"{task.encoder}: {evidence}")
    _save(table, options.out)


def _sweep(options: argparse.Namespace) -> None:
    device = open_device(options.device)
    task = task_for(device, options.encoder)
    compared = compare(
        options.device,
        task,
        paper_lineup(),
        steps=options.steps,
        seeds=options.seeds,
        limit_s=options.limit,
        trusted=trusted_arms(device),
        dask=options.dask,
    )
    _report(compared.overview().reset_index(), f"{task.encoder}: {compared.evidence}")
    _save(compared.table, options.out)


def _profile(options: argparse.Namespace) -> None:
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
        profile(
            device,
            task,
            out,
            plan,
            arms=arms,
            seed=options.seed,
            retry_failed=options.retry_failed,
        )
        table = read_table(out)
        print(f"{len(table)} arms in {out}, {int((table['failed'] != '').sum())} of them failed")


def _live_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a live device is opened with; others take the encoder with every task.

    Raises ValueError for an option that the device does not have.
    """
    flags = {
        "component": options.component,
        "root": options.board,
        "rate_hz": options.rate,
        "imitate": False if options.no_caps else None,
        "timeout_s": options.timeout,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    for name in given:
        if name not in LIVE.get(options.device, ()):
            owners = " and ".join(device for device, names in LIVE.items() if name in names)
            raise ValueError(f"{FLAGS[name]} is for {owners}, not for {options.device}")
    if options.device in LIVE and options.encoder:
        given["encoder"] = options.encoder
    return given


def _trace_of(device: LiveDevice) -> Path:
    """Where a profile goes by default; the name says what its numbers are."""
    encoder = re.sub(r"[^\w.-]+", "-", device.spec.name)
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


if __name__ == "__main__":
    sys.exit(main())
