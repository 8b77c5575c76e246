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
from mllm_sched.schedulers import Hyperparameters, base
from mllm_sched.experiments.random_tables import FIELD, Trial
from mllm_sched.experiments.runner import Rule

arms, ask = [], base.Scheduler.ask
def noted(self, *args, **kwargs):
    decision = ask(self, *args, **kwargs)
    arms.append(decision.arm.index)
    return decision
base.Scheduler.ask = noted

values = Hyperparameters(1.0, 0.05**2, (0.95, 1.0, 1.0))
kernel = {"hyperparameters": {"energy_j": values, "latency_s": values}}
taken = {}
for rule in [*FIELD, Rule("Components alike", "safe-gp-ucb", kernel)]:
    for family, size in (("rough", 48), ("board", 60)):
        arms.clear()
        Trial(rule, family, size, tasks=60).play(seed=3)
        taken[f"{rule.label}, {family}"] = list(arms)
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


@pytest.fixture(scope="module")
def here():
    """Arms taken on this processor."""
    return arms_taken()[1]


def on_each():
    """The oldest one in the unit tests; the others are slow."""
    for name, settings in PROCESSORS.items():
        marks = [] if name == "Nehalem" else [pytest.mark.slow]
        yield pytest.param(name, settings, marks=marks, id=name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates processors of x86")
@pytest.mark.parametrize(("name", "settings"), [*on_each()])
def test_every_scheduler_takes_the_same_arms_on_every_processor(here, name, settings):
    emulated, there = arms_taken(**settings)
    assert set(emulated) == {name} and len(here) >= 48
    assert [rule for rule in here if here[rule] != there[rule]] == []
