from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.devices import open_device
from mllm_sched.schedulers import scheduler_names
from mllm_sched.study.lineup import full_power_arms, paper_lineup, transferred
from mllm_sched.tasks import Task

TASKS = [Task("image", "clip-vit-l14-336"), Task("audio", "whisper-small")]


def test_the_line_up_names_real_schedulers_once_each():
    rules = paper_lineup()
    assert {rule.name for rule in rules} <= set(scheduler_names())
    assert len({rule.label for rule in rules}) == len(rules)


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


def test_hyperparameters_come_from_the_other_encoders_only():
    device = open_device("agx-orin-sim")
    alone = transferred(device, TASKS[0], TASKS[1:])
    assert transferred(device, TASKS[0], TASKS) == alone
    assert set(alone) == {"energy_j", "latency_s"}
    # The scatter that was put in is found again.
    assert 0.01 < alone["latency_s"].noise_variance ** 0.5 < 0.04
