"""Decisions do not hang on a processor: every scheduler takes the same arms on emulated ones.

OpenBLAS and NumPy choose their code by the processor, and each can be told to take that of another
one. Sums then come in another order, and last digits differ.
"""

import json
import os
import platform
import subprocess
import sys

import pytest

PROCESSORS = {
    "Nehalem": {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3"},
    "Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
}
PLAY = """
import json
from threadpoolctl import threadpool_info
from mllm_sched.schedulers import base
from mllm_sched.experiments.random_tables import CHOICES, FIELD, SAFE, ablation_trials
from mllm_sched.experiments.random_tables import Trial

arms, ask = [], base.Scheduler.ask
def noted(self, *args, **kwargs):
    decision = ask(self, *args, **kwargs)
    arms.append(decision.arm.index)
    return decision
base.Scheduler.ask = noted

taken = {}
trials = [Trial(rule, family, size, tasks=120) for rule in FIELD
          for family, size in (("rough", 48), ("board", 60))]
alike = {"components alike": CHOICES["components alike"]}
trials += ablation_trials(SAFE, alike, [("board", 60)])
for trial in trials:
    arms.clear()
    trial.play(seed=3)
    taken[f"{trial.rule.label}, {trial.label}, {trial.family}, {trial.drift}"] = list(arms)
print(json.dumps([[found["architecture"] for found in threadpool_info()], taken]))
"""


def arms_taken(**processor):
    done = subprocess.run(
        [sys.executable, "-c", PLAY],
        env={**os.environ, **processor},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates processors of x86")
def test_every_scheduler_takes_the_same_arms_on_every_processor():
    _, here = arms_taken()
    assert len(here) >= 48
    for name, processor in PROCESSORS.items():
        emulated, there = arms_taken(**processor)
        assert set(emulated) == {name}
        assert [rule for rule in here if here[rule] != there[rule]] == [], name
