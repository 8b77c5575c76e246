"""A closed loop for real: an LLM server, two agents, a user, a thousand tasks; kept as a recording.

    python benchmarks/closed_loop.py [--tasks 1000] [--limit 0.15] [--out FOLDER]

One agent learns; the other stays on the arm that both trust, all cores in full precision, and gets
every fifth task, so that whatever else the machine does meanwhile meets both. Encoders, sockets and
the LLM half are real. Latency is measured; energy is measured where the machine lets us read its
counters, and estimated from CPU time elsewhere: the file's name says which.

Beside the tasks it times what deciding costs: ask, tell and journal, as a share of 100 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.edge.config import AgentConfig, read_config
from mllm_sched.edge.journal import Journal, read_journal
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.load import User
from mllm_sched.edge.run_agent import open_runtime_of, spec_of
from mllm_sched.edge.system import LocalSystem
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.study.closed_loop import ADAPTIVE, FIXED, RECORDED, numbered, summary
from mllm_sched.study.provenance import as_csv, provenance

MODEL, TASK_S = "llava-clip-b32", 0.1
RULES = {ADAPTIVE: ("learns", "adaptive-safe-gp"), FIXED: ("stays", "fixed")}
EVERY = 5  # of the tasks, one goes to the agent that stays


def main() -> int:
    """Run it, print what was learned, write the recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1000, help="of the agent that learns")
    parser.add_argument("--limit", type=float, default=0.15, metavar="S", help="on encoding")
    parser.add_argument("--out", type=Path, default=RECORDED, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, failures = run(Path(folder), options.tasks, options.limit)
        overhead = deciding_s(Path(folder) / "learns.yaml") / TASK_S
    print(summary(numbered(table)).round(4).to_string(index=False))
    print(f"not answered: {failures} of {len(table)}; deciding takes {overhead:.2%} of 100 ms")
    path = write(table, overhead, options)
    print(f"{len(table)} tasks in {path}")
    return int(failures > 0)


def run(folder: Path, tasks: int, limit_s: float) -> tuple[pd.DataFrame, int]:
    """The journals of both agents in one table, and how many tasks were not answered."""
    agents = {
        name: {"device": "host", "scheduler": {"name": rule, "limit_s": limit_s}}
        for name, rule in RULES.values()
    }
    failed = 0
    with LocalSystem(folder, agents, model=MODEL) as system:
        users = {name: User(name, system.client(agent=name), item, 60.0) for name in agents}
        begun_s = time.monotonic()
        for number in range(tasks):
            turns = ["learns", "stays"] if number % EVERY == 0 else ["learns"]
            failed += sum(users[name].ask(number).outcome != "answered" for name in turns)
            if number % 100 == 99:
                print(f"{number + 1} tasks, {time.monotonic() - begun_s:.0f} s", flush=True)
        tables = [
            read_journal(system.journal(name)).assign(scheduler=label)
            for label, (name, _) in RULES.items()
        ]
    return pd.concat(tables, ignore_index=True).drop(columns=["user"]), failed


def item(number: int) -> tuple[Item]:
    """Another photograph each time."""
    image = photograph(("china", "flower")[number % 2], 480, 640)
    return (Item("image", np.roll(image, 13 * number, axis=1)),)


def deciding_s(config: Path, tasks: int = 1000) -> float:
    """Mean seconds of ask, tell and journal, of the same scheduler over made-up measurements."""
    read = read_config(config, AgentConfig)
    runtime = open_runtime_of(read)
    spec = spec_of(read, runtime)
    runtime.close()
    rng = np.random.default_rng(0)
    with Journal(config.parent / "timed.journal") as journal:
        learner = Learner(journal, spec)
        begun_s = time.perf_counter()
        for number in range(tasks):
            decision = learner.ask([f"user/{number}/0"])
            latency_s = 0.05 * float(rng.lognormal(0, 0.05))
            learner.tell(
                decision.id,
                latency_s=latency_s,
                energy_j=6 * latency_s,
                facts={"modality": "image", "encoder": MODEL, "evidence": "estimated"},
            )
        return (time.perf_counter() - begun_s) / tasks


def write(table: pd.DataFrame, overhead: float, options: argparse.Namespace) -> Path:
    """The recording, with where it comes from beside it."""
    (latency,), (energy,) = table["evidence"].unique(), table["energy_evidence"].unique()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"host_{MODEL}_latency-{latency}_energy-{energy}.csv"
    path.write_bytes(as_csv(table))
    parameters = {"tasks": options.tasks, "limit_s": options.limit, "model": MODEL}
    facts = {**provenance(parameters, data=()), "deciding_share_of_100_ms": overhead}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2, default=str) + "\n")
    return path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path


if __name__ == "__main__":
    raise SystemExit(main())
