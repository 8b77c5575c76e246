"""The command ``mllm-sched``: one run or many, on any device, from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mllm_sched.devices import device_names, open_device
from mllm_sched.measurement import TableError
from mllm_sched.schedulers import scheduler_names
from mllm_sched.study import claims
from mllm_sched.study.comparison import compare
from mllm_sched.study.lineup import paper_lineup, task_for, trusted_arms
from mllm_sched.study.metrics import per_run
from mllm_sched.study.provenance import as_csv
from mllm_sched.study.runner import Rule, RunStopped, run


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
    except (ValueError, TypeError, TableError, OSError) as error:
        return _complain(error, 2)


def _complain(error: Exception, status: int) -> int:
    print(f"mllm-sched: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mllm-sched", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    names = commands.add_parser("names", help="list devices and schedulers")
    names.set_defaults(command=_names)

    single = commands.add_parser("run", help="one scheduler, one device, one seed")
    _common(single)
    single.add_argument("--scheduler", default="safe-gp-ucb", metavar="NAME")
    single.add_argument("--seed", type=int, default=0)
    single.set_defaults(command=_run)

    many = commands.add_parser("sweep", help="the paper's line-up with many seeds")
    _common(many)
    many.add_argument("--seeds", type=int, default=20, help="how many (default %(default)s)")
    many.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler, to run there")
    many.set_defaults(command=_sweep)

    judged = commands.add_parser("claims", help="the paper's claims and their verdicts")
    judged.set_defaults(command=lambda options: claims.main(["--print"]))
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="agx-orin-sim", metavar="NAME")
    parser.add_argument("--encoder", default="", metavar="NAME", help="default: the device's first")
    parser.add_argument("--limit", type=float, required=True, metavar="SECONDS", help="on latency")
    parser.add_argument("--steps", type=int, default=1000, help="tasks (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="every task, one row each")


def _names(options: argparse.Namespace) -> None:
    print("devices:    " + ", ".join(device_names()))
    print("schedulers: " + ", ".join(scheduler_names()))


def _run(options: argparse.Namespace) -> None:
    settings = {"encoder": options.encoder} if options.device == "host" and options.encoder else {}
    device = open_device(options.device, seed=options.seed, **settings)
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


def _report(table: pd.DataFrame, title: str) -> None:
    print(title)
    print(table.round(4).to_string(index=False))


def _save(table: pd.DataFrame, path: Path | None) -> None:
    if path is not None:
        path.write_bytes(as_csv(table))
        print(f"{len(table)} rows in {path}", file=sys.stderr)
