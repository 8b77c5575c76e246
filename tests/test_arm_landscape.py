import pandas as pd
import pytest

from mllm_sched.devices import open_device
from mllm_sched.experiments.arm_landscape import (
    arm_table,
    dla_over_gpu,
    non_monotone,
    paper_pair,
)
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")


def test_dla_over_gpu_is_a_ratio_of_energies_at_full_share():
    device = open_device("agx-orin-sim")
    ratio = dla_over_gpu(arm_table(device, TASK)).set_index("power_w")["ratio"]
    gpu, dla = (
        device.expected(device.space.arm(component=c, power_w=30, load=1.0), TASK).energy_j
        for c in ("gpu", "dla")
    )
    assert ratio[30] == pytest.approx(gpu / dla)


def test_the_papers_pair_implies_more_power_than_the_module_draws():
    table = paper_pair(open_device("agx-orin-sim"), TASK)
    # At most 17.1 W was measured in 15W mode; see data/README.md.
    assert (table["paper_power_w"].iloc[:2] > 17.1).all()
    assert (table["power_w"].iloc[:2] < 17.2).all()
    # A fifth of the GPU takes five times as long; a GPU a fifth busy does not.
    share, background, dla = table["latency_s"]
    assert share > 3 * background > 3 * dla


def test_curves_that_only_rise_are_not_counted_as_turning():
    table = pd.DataFrame({"component": ["gpu"] * 6, "load": [1.0] * 3 + [0.2] * 3})
    table = table.assign(power_w=[15, 30, 60] * 2, energy_j=[1, 2, 3, 3, 1, 2])
    assert non_monotone(table, "power_w", "energy_j") == 1
