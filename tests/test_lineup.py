import json

from mllm_sched import paths
from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.experiments.lineup import full_power_arms, paper_lineup
from mllm_sched.schedulers import scheduler_names


def test_the_line_up_names_real_schedulers_once_each():
    rules = paper_lineup()
    assert {rule.name for rule in rules} <= set(scheduler_names())
    assert len({rule.label for rule in rules}) == len(rules)


def test_the_schedulers_of_notebook_04_are_the_line_up():
    notebook = json.loads((paths.NOTEBOOKS / "04_scheduler_comparison.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    (cell,) = [source for source in sources if "schedulers = {" in source]
    there = {"hyperparameters": {}}
    exec(cell, there)
    expected = {rule.label: (rule.name, dict(rule.settings)) for rule in paper_lineup()}
    assert there["schedulers"] == expected


def test_trusted_arms_are_full_power_full_share_and_not_the_cpu():
    arms = full_power_arms(ArmSpace.agx_orin())
    assert [str(arm) for arm in arms] == [
        "component=gpu, power_w=60, load=1.0",
        "component=dla, power_w=60, load=1.0",
    ]


def test_trusted_arms_of_other_spaces():
    assert full_power_arms(ArmSpace([Factor("power_w", [15, 30])]))[0].power_w == 30
    host = ArmSpace([Factor("precision", ["fp32", "int8"]), Factor("threads", [1, 2])])
    assert [str(arm) for arm in full_power_arms(host)] == ["precision=fp32, threads=2"]
