"""The command ``mllm-sched``: one run or many, on any device, from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from mllm_sched import cli_edge, cli_pipeline, extras, paths
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.window import Plan
from mllm_sched.pipeline.node_errors import NodeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Exit status 0; 1 if a device broke; or 2 if the call was wrong or needs a package that is not
    installed: then one line says why.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options) or 0)
    except (ValueError, TypeError, HarnessError, NodeError, OSError) as error:
        return _complain(error, 2)
    except extras.MissingPackage as error:
        return _complain(error, 2)
    except ModuleNotFoundError as error:
        if error.name and (told := extras.advice(error.name.partition(".")[0])):
            return _complain(told, 2)
        raise
    except KeyboardInterrupt:
        return _complain("stopped; the same call goes on where it was", 130)


def _complain(error: Exception | str, status: int) -> int:
    print(f"mllm-sched: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mllm-sched", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    names = commands.add_parser("names", help="list devices and schedulers")
    names.set_defaults(command=_study("names"))

    single = commands.add_parser("run", help="one scheduler, one device, one seed")
    _common(single)
    _live_options(single)
    single.add_argument("--scheduler", default="safe-gp-ucb", metavar="NAME")
    single.add_argument("--seed", type=int, default=0)
    single.set_defaults(command=_study("run"))

    many = commands.add_parser("sweep", help="the paper's line-up with many seeds")
    _common(many)
    many.add_argument("--seeds", type=int, default=20, help="how many (default %(default)s)")
    many.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler, to run there")
    many.set_defaults(command=_study("sweep"))

    measured = commands.add_parser("profile", help="measure every arm of a live device")
    _profile_options(measured)
    measured.set_defaults(command=_study("profile"))

    cli_pipeline.add_commands(commands)
    cli_edge.add_commands(commands)

    judged = commands.add_parser("claims", help="the paper's claims and their verdicts")
    judged.set_defaults(command=_claims)
    return parser


def _study(name: str) -> Callable[[argparse.Namespace], int | None]:
    """A command of ``cli_study``, which takes seconds to import; agents should start at once."""

    def command(options: argparse.Namespace) -> int | None:
        return import_module("mllm_sched.cli_study").__dict__[name](options)

    return command


def _claims(options: argparse.Namespace) -> int:
    paths.need_checkout()
    from mllm_sched.experiments import claims

    return claims.main(["--print"])


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
    add("--out", type=Path, metavar="FILE.csv", help="default: in data/traces, or here")
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


if __name__ == "__main__":
    sys.exit(main())
