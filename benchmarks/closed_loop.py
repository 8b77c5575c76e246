"""A closed loop for real: an LLM server, three agents, a user, a thousand tasks; a recording.

    python benchmarks/closed_loop.py [--tasks 1000] [--limit 0.15] [--out FOLDER]

One agent learns. The two others stay on an arm that it trusts from the start, all cores in float32
and in int8, and get every fifth task, so that whatever else the machine does meanwhile meets all.
Encoders, sockets and the LLM half are real. Latency is measured; energy is measured where the
machine lets us read its counters, and estimated from CPU time elsewhere: the name of the file says
which.

Then it times what deciding costs, ask and tell with the journal, around real calls of the encoder,
as a share of a task of 100 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.devices.host import thread_levels
from mllm_sched.edge.config import AgentConfig, read_config
from mllm_sched.edge.journal import Journal, read_journal
from mllm_sched.edge.learner import Learner
from mllm_sched.edge.load import LoadUser
from mllm_sched.edge.run_agent import open_device_of, spec_of
from mllm_sched.edge.system import LocalSystem
from mllm_sched.experiments.closed_loop import (
    ADAPTIVE,
    FULL,
    INT8,
    RECORDED,
    block_means,
    claims,
    numbered,
    summary,
)
from mllm_sched.experiments.provenance import as_csv, provenance
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.tasks import Task

MODEL, TASK_S = "llava-clip-b32", 0.1
FIXED = {FULL: "float32", INT8: "int8"}
EVERY = 5  # of the tasks, one goes to each agent that stays


def main() -> int:
    """Run it, print what was learned, write the recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1000, help="of the agent that learns")
    parser.add_argument("--limit", type=float, default=0.15, metavar="S", help="on encoding")
    parser.add_argument("--out", type=Path, default=RECORDED, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, failures = run(Path(folder), options.tasks, options.limit)
        deciding = deciding_share(Path(folder) / "learns.yaml")
    print(summary(numbered(table)).round(4).to_string(index=False))
    print("deciding, as a share of 100 ms: {value:.2%} [{low:.2%}, {high:.2%}]".format(**deciding))
    print(f"not answered: {failures} of {len(table)}")
    if failures:
        return 1
    print(claims(numbered(table), deciding).round(4).to_string(index=False))
    print(f"{len(table)} tasks in {write(table, deciding, options)}")
    return 0


def run(folder: Path, tasks: int, limit_s: float) -> tuple[pd.DataFrame, int]:
    """The journals of all agents in one table, and how many tasks were not answered."""
    agents = {"learns": {"device": "host", "scheduler": {"limit_s": limit_s}}} | {
        precision: {"device": "host", "scheduler": stays(precision, limit_s)}
        for precision in FIXED.values()
    }
    failed = 0
    with LocalSystem(folder, agents, model=MODEL) as system:
        users = {name: LoadUser(name, system.client(agent=name), item, 60.0) for name in agents}
        begun_s = time.monotonic()
        for number in range(tasks):
            turns = list(agents) if number % EVERY == 0 else ["learns"]
            failed += sum(users[name].ask(number).outcome != "answered" for name in turns)
            if number % 100 == 99:
                print(f"{number + 1} tasks, {time.monotonic() - begun_s:.0f} s", flush=True)
        labels = {"learns": ADAPTIVE, **{name: label for label, name in FIXED.items()}}
        tables = [
            read_journal(system.journal(name)).assign(scheduler=label)
            for name, label in labels.items()
        ]
    return pd.concat(tables, ignore_index=True).drop(columns=["user"]), failed


def stays(precision: str, limit_s: float) -> dict[str, Any]:
    """A scheduler that stays on all cores in one precision."""
    arm = {"precision": precision, "threads": thread_levels()[-1]}
    return {"name": "fixed", "limit_s": limit_s, "trusted": [arm]}


def item(number: int) -> tuple[Item]:
    """Another photograph each time."""
    image = photograph(("china", "flower")[number % 2], 480, 640)
    return (Item("image", np.roll(image, 13 * number, axis=1)),)


def deciding_share(config: Path, tasks: int = 1000) -> dict[str, float]:
    """Ask and tell with the journal, around real calls, over 100 ms: mean, 95 % interval, count."""
    read = read_config(config, AgentConfig)
    took_s = []
    with closing(open_device_of(read)) as device:
        spec, items = spec_of(read, device), [device.encoders.prepare(item(0)[0])]
        task = Task("image", f"{MODEL}:image")
        with Journal(config.parent / "timed.journal") as journal:
            learner = Learner(journal, spec)
            for number in range(tasks):
                asked_s = time.perf_counter()
                decision = learner.ask([f"user/{number}/0"])
                decided_s = time.perf_counter()
                encoded = device.run(decision.arm, task, items)
                encoded_s = time.perf_counter()
                measured = {"latency_s": encoded.latency_s, "energy_j": encoded.energy_j}
                learner.tell(decision.id, facts={"encoder": MODEL}, **measured)
                took_s.append(time.perf_counter() - encoded_s + decided_s - asked_s)
    shares = np.array(took_s) / TASK_S
    low, high = np.quantile(block_means(shares, np.random.default_rng(0)), [0.025, 0.975])
    return {"value": float(shares.mean()), "low": float(low), "high": float(high), "n": tasks}


def write(table: pd.DataFrame, deciding: dict[str, float], options: argparse.Namespace) -> Path:
    """The recording, with where it comes from beside it."""
    latency, energy = ("-".join(table[name].unique()) for name in ("evidence", "energy_evidence"))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"host_{MODEL}_latency-{latency}_energy-{energy}.csv"
    parameters = {"tasks": options.tasks, "limit_s": options.limit, "model": MODEL}
    facts = {**provenance(parameters, data=()), "deciding_share_of_100_ms": deciding}
    path.write_bytes(as_csv(table))
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2, default=str) + "\n")
    return path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path


if __name__ == "__main__":
    raise SystemExit(main())
