import json

import pytest

from mllm_sched import paths
from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.devices import open_device
from mllm_sched.experiments import comparison
from mllm_sched.experiments.comparison import OURS, compare, full_power_arms, paper_lineup
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
LABELS = [rule.label for rule in paper_lineup()]
STEPS = 12


@pytest.fixture(scope="module")
def played():
    trusted = full_power_arms(ArmSpace.agx_orin())
    rules = paper_lineup()
    terms = {"steps": STEPS, "seeds": 2, "limit_s": 0.2, "trusted": trusted}
    return compare("agx-orin-sim", TASK, rules, **terms)


def test_the_schedulers_of_notebook_04_are_the_line_up():
    notebook = json.loads((paths.NOTEBOOKS / "04_scheduler_comparison.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    (cell,) = [source for source in sources if "schedulers = {" in source]
    there = {"hyperparameters": {}}
    exec(cell, there)
    expected = {rule.label: (rule.name, dict(rule.settings)) for rule in paper_lineup()}
    assert there["schedulers"] == expected


def test_trusted_arms_are_full_power_full_share_and_not_the_cpu():
    orin = ArmSpace.agx_orin()
    wanted = [orin.arm(component=name, power_w=60, load=1.0) for name in ("gpu", "dla")]
    assert full_power_arms(orin) == wanted
    assert full_power_arms(ArmSpace([Factor("power_w", [15, 30])]))[0].power_w == 30
    host = ArmSpace([Factor("precision", ["fp32", "int8"]), Factor("threads", [1, 2])])
    assert [str(arm) for arm in full_power_arms(host)] == ["precision=fp32, threads=2"]


@pytest.mark.parametrize("quantity", ["energy", "latency"])
@pytest.mark.parametrize(("late", "start"), [("", 0), (" late", STEPS // 2)])
def test_savings_compare_ours_with_everyone_else(played, quantity, late, start):
    savings = played.savings[played.savings["what"] == quantity + late].set_index("scheduler")
    tasks = played.table[played.table["step"] >= start].groupby(["seed", "scheduler"])
    means = tasks[{"energy": "energy_j", "latency": "latency_s"}[quantity]].mean().unstack()
    for other in set(LABELS) - {OURS}:
        wanted = (1 - means[OURS] / means[other]).mean()
        assert savings.loc[other, "value"] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("limit_s", "count"), [(0.2, 2), (0.06, 1), (0.05, 2)])
def test_trusted_arms_meet_the_limit_if_any_full_power_arm_does(limit_s, count):
    assert len(comparison.trusted_within(open_device("agx-orin-sim"), TASK, limit_s)) == count


def test_the_best_arm_of_a_power_level_is_one_of_its_own():
    row = comparison.best_arm(open_device("agx-orin-sim", power_levels=(15,)), TASK, 0.2)
    assert (row["arms"], row["within the limit"]) == (15, 3) and "power_w=15" in row["best arm"]
    row = comparison.best_arm(open_device("agx-orin-sim"), TASK, 0.01)
    assert row["within the limit"] == 0 and row["best arm"].startswith("none; ")
