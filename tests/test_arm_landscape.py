import numpy as np
import pandas as pd
import pytest

from mllm_sched.devices import open_device
from mllm_sched.experiments.arm_landscape import (
    arm_table,
    dla_over_gpu,
    energy_accounts,
    one_hot_features,
    paper_pair,
    prediction_error,
    reversals,
)
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")


def test_reversals_are_the_steps_up_that_rise():
    table = pd.DataFrame(
        {"component": "gpu", "load": 1.0, "power_w": [15, 30, 50], "energy_j": [3.0, 2.0, 2.5]}
    )
    found = reversals(table, "power_w", "energy_j")
    assert found[["from", "to"]].values.tolist() == [[30, 50]]
    assert found["change"].item() == pytest.approx(0.25)
    assert reversals(table.assign(energy_j=[3, 2, 1]), "power_w", "energy_j").empty


def test_reversals_along_the_only_factor():
    table = pd.DataFrame({"power_w": [30, 15], "latency_s": [2.0, 1.0]})
    assert len(reversals(table, "power_w", "latency_s")) == 1


def test_the_arm_table_holds_every_arm_and_its_evidence():
    device = open_device("agx-orin-sim")
    table = arm_table(device, TASK)
    assert len(table) == 60 and set(table["evidence"]) == {"simulated"}
    arm = device.space[33]
    assert table.loc[33, "energy_j"] == device.expected(arm, TASK).energy_j
    assert table.loc[33, "component"] == arm.component


def test_energy_accounts_are_nested():
    table = energy_accounts(["resnet-50"], ["image"])
    assert (table["marginal"] < table["total"]).all()
    full = table["load"] == 1.0
    np.testing.assert_allclose(table.loc[full, "with_tenants"], table.loc[full, "total"])
    assert (table.loc[~full, "with_tenants"] > table.loc[~full, "total"]).all()


def test_dla_over_gpu_is_a_ratio_of_energies_at_full_share():
    device = open_device("agx-orin-sim")
    table = arm_table(device, TASK)
    ratio = dla_over_gpu(table).set_index("power_w")["ratio"]
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


def test_more_profiled_arms_predict_the_rest_better():
    device = open_device("agx-orin-sim")
    values = device.expected_all(TASK).latency_s
    errors = prediction_error(device.space, values, sizes=[8, 40], repeats=1)
    median = errors.groupby(["predictor", "arms_profiled"])["error"].median().unstack()
    assert (median[40] < median[8]).all()
    assert one_hot_features(device.space).shape == (60, 5)
