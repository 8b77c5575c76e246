"""The device model against what was published: fitted rows, and rows it has not seen."""

import dataclasses

import numpy as np
import pytest

from mllm_sched import paths
from mllm_sched.devices.calibration import (
    calibrate,
    dla_gpu_ratio,
    dla_latency,
    gpu_sweep,
    predictions,
)
from mllm_sched.devices.orin_model import OrinModel, calibrated_model, power_modes


def flat(value):
    return [*map(flat, value)] if isinstance(value, tuple) else value


def test_the_committed_parameters_are_those_of_a_refit():
    committed, refit = calibrated_model(), calibrate()
    for field in dataclasses.fields(OrinModel):
        # Loose enough for another BLAS, tight enough that no prediction moves by a per mille.
        np.testing.assert_allclose(
            np.array(flat(getattr(refit, field.name))),
            np.array(flat(getattr(committed, field.name))),
            rtol=1e-4,
            atol=1e-8 if field.name == "gpu_sm_exponent" else 0,
            err_msg=field.name,
        )


def test_the_parameters_survive_the_file():
    text = (paths.DATA / "calibration" / "agx_orin.json").read_text()
    assert OrinModel.from_json(text).to_json() == text


def test_published_tables_are_read_in_si_units():
    assert len(gpu_sweep()) == 24 and len(dla_latency()) == 24 and len(dla_gpu_ratio()) == 24
    assert power_modes().loc[60, "memory_gbs"] == pytest.approx(204.8, rel=0.001)
    assert gpu_sweep()["latency_s"].between(0.01, 0.2).all()
    resnet = dla_latency().query("network == 'ResNet50' and power_w == 60")["latency_s"]
    assert resnet.item() == pytest.approx(2 / 2037)


def test_seen_and_held_out_rows_are_apart():
    table = predictions(calibrated_model())
    held_out = table.query("held_out")
    assert set(table.query("power_w == 50")["held_out"]) == {True}
    assert set(table.query("network == 'deeplabv3_resnet101'")["held_out"]) == {True}
    assert set(held_out.query("source == 'DLA table'")["power_w"]) == {30, 50}
    assert np.isfinite(table["error"]).all()


def test_a_row_that_is_held_out_does_not_move_the_fit(monkeypatch):
    """Break every held-out GPU row; the parameters must not notice (noise_sd reads all rows)."""
    from mllm_sched.devices import calibration

    def broken(file="orin_module_sweep.csv"):
        sweep = gpu_sweep(file)
        unseen = (sweep["power_w"] == 50) | (sweep["network"] == "deeplabv3_resnet101")
        for column in ("latency_s", "marginal_energy_j", "idle_w"):
            sweep.loc[unseen, column] *= 3
        return sweep

    expected = calibrate()
    monkeypatch.setattr(calibration, "gpu_sweep", broken)
    refit = calibrate()
    for field in dataclasses.fields(OrinModel):
        if field.name != "noise_sd":
            assert getattr(refit, field.name) == getattr(expected, field.name)


def test_the_50w_mode_is_slower_than_30w_for_a_small_network():
    """Measured on MobileNets: the CPU's clock is lower at 50W, and launches wait for it."""
    table = predictions(calibrated_model())
    small = table.query(
        "network == 'lraspp_mobilenet_v3_large' and quantity == 'latency_s'"
    ).set_index("power_w")
    for column in ("published", "predicted"):
        assert small.loc[50, column] > small.loc[30, column]
