"""The command ``mllm-sched``: one run or many, on any device, from a shell."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mllm_sched import extras, paths
from mllm_sched.harness.reading import HarnessError
from mllm_sched.harness.window import Plan
from mllm_sched.pipeline.node_errors import NodeError
from mllm_sched.pipeline.requests import WIRE_TYPES
from mllm_sched.tasks import MODALITIES

LOG_LEVELS = ("debug", "info", "warning", "error")


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

    _pipeline_commands(commands)
    _edge_commands(commands)

    judged = commands.add_parser("claims", help="the paper's claims and their verdicts")
    judged.set_defaults(command=_claims)
    return parser


def _study(name: str) -> Callable[[argparse.Namespace], int | None]:
    """A command of ``cli_study``, which takes seconds to import; agents should start at once."""

    def command(options: argparse.Namespace) -> int | None:
        from mllm_sched import cli_study

        return getattr(cli_study, name)(options)

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


# -- The decoupled pipeline: serve-llm, edge


def _pipeline_commands(commands: Any) -> None:
    from mllm_sched.pipeline.options import add_options

    server = commands.add_parser("serve-llm", help="serve the LLM of a decoupled model")
    add_options(server)
    server.add_argument(
        "--with-encoders", action="store_true", help="hold them too, for raw requests (All Remote)"
    )
    server.set_defaults(command=_serve_llm)

    edge = commands.add_parser("edge", help="encode here, and ask the LLM server; or --listen")
    add = edge.add_argument
    add("--server", metavar="HOST:PORT", help="of the LLM")
    for modality in MODALITIES:
        add(f"--{modality}", action="append", default=[], type=Path, metavar="FILE")
    add("--fps", type=float, default=2.0, help="frames to take of a second (default %(default)s)")
    add("--prompt", default="", help="the question")
    add("--max-new-tokens", type=int, default=64, metavar="N", help="(default %(default)s)")
    add("--cut", choices=("encoder", "projector"), default="projector", help="(%(default)s)")
    add("--wire", choices=WIRE_TYPES, default="float16", help="features' type (%(default)s)")
    add("--deadline", type=float, default=60.0, metavar="SECONDS", help="(default %(default)s)")
    add("--listen", action="store_true", help="serve the encoders to others instead")
    add("--modalities", nargs="*", default=[], metavar="NAME", help="hold only these encoders")
    add_options(edge, port=50052)
    edge.set_defaults(command=_edge)


def _serve_llm(options: argparse.Namespace) -> None:
    from mllm_sched.pipeline.llm_server import run_node

    run_node(options, encoders=() if options.with_encoders else None)


def _edge(options: argparse.Namespace) -> None:
    from mllm_sched.pipeline.llm_server import run_node

    if options.listen:
        run_node(options, encoders=options.modalities, language=False)
    else:
        _ask(options)


def _ask(options: argparse.Namespace) -> None:
    """Encode the files here, send their features, print the answer as it comes, then the times."""
    import torch

    from mllm_sched.pipeline.checkpoints import load_encoders
    from mllm_sched.pipeline.edge_client import EdgeClient
    from mllm_sched.pipeline.options import security_of
    from mllm_sched.pipeline.requests import Request, TextStream, encode_text
    from mllm_sched.pipeline.split import markers_of
    from mllm_sched.pipeline.wire import pack

    if not options.server:
        raise ValueError("--server HOST:PORT is missing: where is the LLM? (or give --listen)")
    torch.set_num_threads(options.threads)
    items = _read_items(options)
    modalities = [item.modality for item in items]
    held = options.modalities or sorted(set(modalities))
    encoders = load_encoders(options.model, held, options.seed, options.dtype)
    prompt = encode_text(options.model, markers_of(encoders), modalities, options.prompt)
    request = Request(prompt, items, options.max_new_tokens)
    begun_s = time.perf_counter()
    parts = [encoders.encode(item, options.cut) for item in items]
    encode_s = time.perf_counter() - begun_s
    data = pack(request, encoders.identity, parts, options.wire)
    text = TextStream(options.model)
    with EdgeClient(options.server, security_of(options)) as client:
        for event, tries in client.events(data, request.id, options.deadline):
            if event.WhichOneof("content") == "token":
                print(text.add(event.token.token), end="", flush=True)
                continue
            total_s, times = time.perf_counter() - begun_s, event.finished.times
            sent_s = total_s - encode_s - times.llm_s - times.wait_s
            print(text.rest())
            print(
                f"{event.finished.tokens} tokens in {total_s:.2f} s: encoding {encode_s:.2f}, "
                f"transmission {sent_s:.2f}, LLM {times.llm_s:.2f}, waiting {times.wait_s:.2f}; "
                f"{len(data)} bytes sent for {request.bytes} of raw input; {tries} tries",
                file=sys.stderr,
            )


def _read_items(options: argparse.Namespace) -> tuple[Any, ...]:
    """The files as raw items, in the order image, audio, video."""
    from mllm_sched.pipeline.media import read_audio, read_image, read_video

    items = [read_image(path) for path in options.image]
    items += [read_audio(path) for path in options.audio]
    items += [read_video(path, options.fps) for path in options.video]
    if not items and not options.prompt:
        raise ValueError("nothing to ask: give --prompt, --image, --audio or --video")
    return tuple(items)


# -- The running system: agent, front, users, journal, dashboard


def _edge_commands(commands: Any) -> None:
    for name, run, text in (
        ("agent", _agent, "encode for users, adaptively, and have an LLM server answer"),
        ("front", _front, "one address in front of several agents"),
    ):
        command = commands.add_parser(name, help=text)
        add = command.add_argument
        add("config", type=Path, metavar="CONFIG.yaml")
        add("--check", action="store_true", help="explain it, start nothing")
        add("--log", default="info", choices=LOG_LEVELS, help="(default %(default)s)")
        add("--parent", type=int, metavar="PID", help="end when that has ended")
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
    from mllm_sched.process_setup import end_with

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


if __name__ == "__main__":
    sys.exit(main())
