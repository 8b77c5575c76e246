"""What one decision costs with each library: median ask + tell, by measurements and by arms.

Every cell runs in a process of its own, one after the other, so that one that takes too long or too
much memory can be given up. Before timing, ``t`` measurements are told, spread evenly over the
arms; where hyperparameters are kept they are fitted on the first 40 alone.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd
import torch
from peers import peers
from threadpoolctl import threadpool_limits

from mllm_sched import ArmSpace, Factor

SHAPES = {60: (3, 4, 5), 240: (4, 6, 10), 960: (4, 12, 20)}  # components, power levels, loads
LONGEST_S = 60.0  # of one decision, and of telling what was measured before
MEMORY_BYTES = 20 * 2**30
DECISIONS = 50  # timed at most
ENOUGH_S = 3.0  # after which two timed decisions do
FITTED_ON = 40
LIMIT_S = 0.2


def space_of(arms: int) -> ArmSpace:
    """Arms of the shape of the paper's, at three sizes."""
    components, levels, loads = SHAPES[arms]
    return ArmSpace(
        [
            Factor("component", [f"unit {number}" for number in range(components)]),
            Factor("power_w", np.geomspace(15, 60, levels).tolist(), log=True),
            Factor("load", np.linspace(0.2, 1, loads).tolist(), log=True),
        ]
    )


def measured(space: ArmSpace, arms: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Energy (J) and latency (s) of some arms, with 3 % of noise; no model of a board."""
    code, power, load = space.features()[list(arms)].T
    noise = np.exp(0.03 * np.random.default_rng(seed).standard_normal((2, len(arms))))
    energy = np.exp(0.5 * power + (load - 0.6) ** 2 + 0.4 * code)
    return energy * noise[0], 0.3 * np.exp(-power - 0.8 * load) * noise[1]


def decide(name: str, arms: int, told: int, out: Connection) -> None:
    """In a process of its own: send "ready", the seconds of each decision, and at last None."""
    threadpool_limits(1)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    space = space_of(arms)
    tops = [arm.index for arm in space if arm.power_w == arm.load * 60]
    peer = peers()[name](space, LIMIT_S, tops, 0)
    before = [*tops, *np.random.default_rng(0).integers(0, arms, told - len(tops)).tolist()]
    energy, latency = measured(space, before, 1)
    peer.preload(before[:FITTED_ON], energy[:FITTED_ON], latency[:FITTED_ON])
    peer.keep()
    peer.preload(before[FITTED_ON:], energy[FITTED_ON:], latency[FITTED_ON:])
    out.send("ready")
    begun_at, noise = time.perf_counter(), np.random.default_rng(2)
    for decision in range(DECISIONS + 1):
        begun = time.perf_counter()
        arm = peer.ask()
        asked = time.perf_counter() - begun
        (energy_j,), (latency_s,) = measured(space, [arm], int(noise.integers(2**31)))
        begun = time.perf_counter()
        peer.tell(arm, float(energy_j), float(latency_s))
        out.send(asked + time.perf_counter() - begun)
        if decision >= 2 and time.perf_counter() - begun_at > ENOUGH_S:
            break
    out.send(None)


def cell(name: str, arms: int, told: int) -> tuple[list[float], str]:
    """Seconds of the decisions, and why there are none."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=decide, args=(name, arms, told, theirs)
    )
    process.start()
    theirs.close()
    seconds: list[float] = []
    why, waited = "", "telling the measurements"
    try:
        while not why:
            if not ours.poll(LONGEST_S):
                why = f"{waited} took over {LONGEST_S:g} s"
            elif (sent := ours.recv()) is None:
                break
            elif sent == "ready":
                waited = "a decision"
            else:
                seconds.append(sent)
    except EOFError:
        why = f"ended early: out of {MEMORY_BYTES >> 30} GiB, or an error above"
    finally:
        process.terminate()
        process.join()
        ours.close()
    return seconds, why if len(seconds) < 2 else ""


def row(name: str, arms: int, told: int, repeats: int) -> dict[str, object]:
    """Least of some medians: what else a machine does only ever adds.

    ``longest_ms`` is that of the slowest decision, where ours learn; the fits of libraries whose
    hyperparameters are kept came before.
    """
    medians: list[float] = []
    longest, why = float("nan"), ""
    for _ in range(repeats):
        seconds, why = cell(name, arms, told)
        if why:
            break
        medians.append(1e3 * float(np.median(seconds[1:])))  # the first one warms up
        longest = float(np.nanmin([longest, 1e3 * max(seconds)]))
        if sum(seconds) > ENOUGH_S:
            break
    ms = min(medians, default=float("nan"))
    return {
        "rule": name,
        "arms": arms,
        "measurements": told,
        "ms": ms,
        "longest_ms": longest,
        "repeats": len(medians),
        "not_run": "" if medians else why,
    }


def costs(
    names: Sequence[str],
    arms: Sequence[int] = tuple(SHAPES),
    told: Sequence[int] = (50, 500, 5000),
    repeats: int = 3,
) -> pd.DataFrame:
    """All cells. What was given up is not tried with more arms."""
    rows = []
    for name in names:
        for count in told:
            given_up = ""
            for size in arms:
                made = row(name, size, count, 0 if given_up else repeats)
                if given_up:
                    made["not_run"] = given_up
                elif made["not_run"]:
                    given_up = f"given up with fewer arms, where {made['not_run']}"
                rows.append(made)
                outcome = made["not_run"] or f"{made['ms']:.3g} ms"
                print(f"  {name}, {size} arms, t = {count}: {outcome}", flush=True)
    return pd.DataFrame(rows)
