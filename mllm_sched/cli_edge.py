"""The commands of the running system: agent, front, users, journal, dashboard."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllm_sched import paths

LEVELS = ("debug", "info", "warning", "error")


def add_commands(commands: Any) -> None:
    """Add them to the parser of ``mllm-sched``."""
    for name, run, text in (
        ("agent", _agent, "encode for users, adaptively, and have an LLM server answer"),
        ("front", _front, "one address in front of several agents"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("config", type=Path, metavar="CONFIG.yaml")
        command.add_argument("--check", action="store_true", help="explain it, start nothing")
        command.add_argument("--log", default="info", choices=LEVELS, help="(default %(default)s)")
        command.add_argument("--parent", type=int, metavar="PID", help="end when that has ended")
        command.set_defaults(command=run)

    users = commands.add_parser("users", help="let somebody ask: prints a token, once")
    users.add_argument("file", type=Path, metavar="USERS.yaml")
    users.add_argument("name", help="of the user")
    users.add_argument("--rate", type=float, metavar="HZ", help="requests a second")
    users.add_argument("--at-once", type=int, metavar="N", help="requests at a time")
    users.add_argument("--weight", type=float, metavar="N", help="share of the device")
    users.add_argument("--front", action="store_true", help="may ask on behalf of others")
    users.set_defaults(command=_users)

    journal = commands.add_parser("journal", help="export what an agent measured")
    journal.add_argument("file", type=Path, metavar="JOURNAL")
    journal.add_argument("out", type=Path, metavar="OUT.csv|OUT.parquet")
    journal.add_argument(
        "--complete", action="store_true", help="only arms of which the table is a whole space"
    )
    journal.set_defaults(command=_journal)

    dashboard = commands.add_parser("dashboard", help="print the Grafana dashboard")
    dashboard.set_defaults(command=_dashboard)


def _agent(options: argparse.Namespace) -> None:
    from mllm_sched.edge.config import AgentConfig
    from mllm_sched.edge.run_agent import explain, run_agent

    _serve(options, AgentConfig, explain, run_agent)


def _front(options: argparse.Namespace) -> None:  # which does without PyTorch
    from mllm_sched.edge.config import FrontConfig
    from mllm_sched.edge.front import explain, run_front

    _serve(options, FrontConfig, explain, run_front)


def _serve(
    options: argparse.Namespace, kind: Any, explain: Callable[..., str], run: Callable[..., None]
) -> None:
    from mllm_sched.edge.config import read_config
    from mllm_sched.edge.logs import setup
    from mllm_sched.endings import end_with

    config = read_config(options.config, kind)
    if options.check:
        print(explain(config))
        return
    setup(options.log)
    if options.parent:
        end_with(options.parent)
    run(config)


def _users(options: argparse.Namespace) -> None:
    from mllm_sched.edge.users import add

    wanted = {"rate_hz": options.rate, "at_once": options.at_once, "weight": options.weight}
    given = {name: value for name, value in wanted.items() if value is not None}
    print(add(options.file, options.name, front=options.front, **given))


def _journal(options: argparse.Namespace) -> None:
    from mllm_sched.edge.journal_table import export

    written = export(options.file, options.out, complete=options.complete)
    print(f"{written.path}: {written.rows} measurements")
    for name, levels in written.levels.items():
        print(f"  {name}: {', '.join(map(str, levels))}")
    if written.missing:
        print(f"  {len(written.missing)} arms of these levels lack a measurement:")
        print(*(f"    {arm}" for arm in written.missing), sep="\n")


def _dashboard(options: argparse.Namespace) -> None:
    print((paths.PACKAGE / "edge" / "grafana.json").read_text(), end="")
