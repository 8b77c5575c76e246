"""What is said of a recorded loop, and how its claim is judged."""

import numpy as np
import pandas as pd
import pytest

from mllm_sched.experiments import closed_loop
from mllm_sched.experiments.claims import load_claims

DECIDING = {"value": 0.008, "low": 0.007, "high": 0.009, "n": 300}


def recording(learned_j=0.3, late_s=0.05, tasks=400):
    """A loop of three agents; the one that learns begins on the dear arm."""
    rng, parts = np.random.default_rng(0), []
    for scheduler, precision, energy_j in (
        (closed_loop.ADAPTIVE, "int8", learned_j),
        (closed_loop.FULL, "float32", 1.0),
        (closed_loop.INT8, "int8", 0.4),
    ):
        count = tasks if scheduler == closed_loop.ADAPTIVE else tasks // 5
        energies = energy_j * rng.lognormal(0, 0.05, count)
        if scheduler == closed_loop.ADAPTIVE:
            energies[:20] = 1.0
        parts.append(
            pd.DataFrame(
                {
                    **{"scheduler": scheduler, "precision": precision, "threads": 2},
                    **{"energy_j": energies, "latency_s": late_s, "limit_s": 0.15},
                    **{"evidence": "measured", "energy_evidence": "estimated", "failed": ""},
                }
            )
        )
    return closed_loop.numbered(pd.concat(parts, ignore_index=True))


def judged(table, deciding=DECIDING):
    (claim,) = [claim for claim in load_claims() if claim.id == "feedback"]
    numbers = closed_loop.claims(table, deciding).set_index("key")
    for test in claim.tests:
        assert numbers.loc[test.key, "evidence"] == (test.evidence or claim.evidence)
    return claim.verdict(numbers)


def test_the_claim_hangs_on_what_was_learned_and_not_on_a_trusted_arm_alone():
    assert judged(recording()) == "reproduced"
    assert judged(recording(learned_j=0.41)) == "partly"  # no better than a trusted arm
    assert judged(recording(learned_j=0.9)) == "not reproduced"


def test_the_claim_hangs_on_violations_and_on_what_deciding_costs():
    assert judged(recording(late_s=0.2)) == "partly"
    assert judged(recording(), {**DECIDING, "value": 0.009, "high": 0.011}) == "partly"


def test_the_first_tasks_are_not_what_was_learned():
    numbers = closed_loop.claims(recording(), DECIDING).set_index("key")["value"]
    assert numbers["energy over full precision on all cores"] == pytest.approx(0.3, rel=0.02)


def test_energies_that_follow_each_other_have_a_wider_interval():
    rng = np.random.default_rng(0)
    drifting = np.repeat(rng.normal(1, 0.1, 40), 10)
    shuffled = rng.permutation(drifting)
    wide, narrow = (
        closed_loop.block_means(values, np.random.default_rng(1)).std()
        for values in (drifting, shuffled)
    )
    assert wide > 2 * narrow


def test_a_failed_task_without_a_latency_is_a_violation():
    table = recording(tasks=10)
    table.loc[0, ["latency_s", "failed"]] = [np.nan, "hangs"]
    table.loc[1, ["energy_j", "failed"]] = [np.nan, "the meter broke"]  # quick enough, though
    assert closed_loop.summary(table, blocks=2)["violations"].iloc[0] == pytest.approx(0.2)
