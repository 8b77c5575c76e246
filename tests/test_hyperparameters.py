import numpy as np
import pandas as pd
import pytest

from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import hyperparameters
from mllm_sched.experiments.hyperparameters import (
    FITS,
    KEY,
    all_tasks,
    cases,
    fit_table,
    transferred,
)

FOUND = ["variance", "noise_variance", "component", "power_w", "load"]


def kept_rows(board, task):
    table = pd.read_csv(FITS, dtype=dict.fromkeys(KEY, str)).set_index([*KEY, "quantity"])
    made = fit_table([(board, task)]).set_index([*KEY, "quantity"])
    return table.loc[made.index, FOUND], made[FOUND]


@pytest.mark.parametrize(
    ("board", "task"),
    [
        pytest.param({}, 0, id="whole board", marks=pytest.mark.slow),
        pytest.param({"power_levels": (15,), "components": ("gpu", "dla")}, 0, id="15 W, no CPU"),
    ],
)
def test_the_fits_kept_as_data_are_what_a_fit_gives(board, task):
    """The likelihood is flat: elsewhere a fit may end a little off."""
    kept, made = kept_rows(SimulatedOrin(**board), all_tasks()[task])
    np.testing.assert_allclose(kept, made, rtol=1e-3)


def test_every_case_of_the_studies_has_its_fits_once():
    table = pd.read_csv(FITS, dtype=dict.fromkeys(KEY, str))
    assert len(table) == 2 * len(list(cases())) == len(table.drop_duplicates([*KEY, "quantity"]))


def test_a_fit_that_is_kept_needs_no_fitting(monkeypatch):
    monkeypatch.setattr(hyperparameters, "fitted", None)
    task = all_tasks()[1]
    found = transferred(SimulatedOrin(accounting="marginal"), task, all_tasks())
    assert set(found) == {"energy_j", "latency_s"}
    assert found != transferred(SimulatedOrin(), task, all_tasks())
