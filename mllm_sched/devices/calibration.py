"""Published measurements of a Jetson AGX Orin, and the fit of the device model to them.

The tables are read from ``data/published``; their sources stand in ``data/README.md``.

``python -m mllm_sched.devices.calibration`` rewrites ``data/calibration/agx_orin.json`` and
prints the errors on the held-out rows.

Seen: the GPU sweep at 15W, 30W and MAXN without deeplabv3_resnet101; the DLA at 15W and MAXN;
the DLA-to-GPU ratios at 15W, 30W and MAXN. Held out: everything at 50W, deeplabv3_resnet101, the
larger input size, the DLA at 30W, and the paper's pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from mllm_sched import paths
from mllm_sched.devices.orin_model import POWER_W, OrinModel, power_modes
from mllm_sched.pipeline.work import Work, read_work

HELD_OUT_NETWORK = "deeplabv3_resnet101"
HELD_OUT_POWER_W = 50

# The networks of NVIDIA's DLA table whose work we can count: name there, name in our table.
DLA_COUNTED = {"ResNet34-backbone": "resnet34_1280x768", "ResNet50": "resnet50_224"}


def gpu_sweep(file: str = "orin_module_sweep.csv") -> pd.DataFrame:
    """Segmentation networks on the GPU, FP32, batch 1, one row per network and power level.

    Columns: ``network``, ``power_w``, ``latency_s``, ``latency_p95_s``, ``idle_w``,
    ``energy_j`` (module total), ``energy_sd_j``, ``marginal_energy_j`` (idle-subtracted).
    """
    raw = pd.read_csv(paths.PUBLISHED / file)
    return pd.DataFrame(
        {
            "network": raw["model"],
            "power_w": raw["mode"].map(POWER_W),
            "latency_s": raw["latency_ms"] / 1e3,
            "latency_p95_s": raw["p95_ms"] / 1e3,
            "idle_w": raw["idle_W"],
            "energy_j": raw["E_total_J"],
            "energy_sd_j": raw["E_total_sd"],
            "marginal_energy_j": raw["E_marginal_J"],
        }
    )


def dla_latency() -> pd.DataFrame:
    """Networks on a DLA core, INT8 dense: ``network``, ``power_w``, ``latency_s`` per image."""
    table = _dla_table("dla2x_dense_ips")
    table["latency_s"] = 2.0 / table.pop("value")  # images per second of both cores
    return table


def dla_gpu_ratio() -> pd.DataFrame:
    """Performance per watt of the DLA over the GPU, INT8: ``network``, ``power_w``, ``ratio``."""
    table = _dla_table("perfW_ratio_DLA_over_GPU", config_prefix="dense")
    return table.rename(columns={"value": "ratio"})


def _dla_table(name: str, config_prefix: str = "") -> pd.DataFrame:
    raw = pd.read_csv(paths.PUBLISHED / "nvidia_dla_tables.csv")
    raw = raw[(raw["table"] == name) & raw["config"].str.startswith(config_prefix)]
    long = raw.melt(id_vars="network", value_vars=list(POWER_W), var_name="mode")
    long["power_w"] = long.pop("mode").map(POWER_W)
    return long


def sweep_trace() -> pd.DataFrame:
    """The GPU sweep as a table of measurements that ``trace:`` can replay.

    A task is one inference, so its latency scatters as the published 95th percentile says:
    sd = (p95 - mean) / 1.645. Of the energy only the sd of three repeats is published.
    """
    sweep = gpu_sweep()
    return pd.DataFrame(
        {
            "power_w": sweep["power_w"],
            "modality": "image",
            "encoder": sweep["network"],
            "latency_s": sweep["latency_s"],
            "latency_sd_s": ((sweep["latency_p95_s"] - sweep["latency_s"]) / 1.645).round(7),
            "energy_j": sweep["energy_j"],
            "energy_sd_j": sweep["energy_sd_j"],
            "evidence": "published",
        }
    )


def calibrate() -> OrinModel:
    """The model fitted to the rows that are not held out."""
    work = read_work()
    sweep = gpu_sweep()
    seen = sweep[(sweep["power_w"] != HELD_OUT_POWER_W) & (sweep["network"] != HELD_OUT_NETWORK)]
    return OrinModel(
        **_fit_gpu_latency(seen, work),
        **_fit_gpu_energy(seen, work),
        **_fit_dla_latency(work),
        **_fit_dla_energy(seen),
        idle_w=tuple(
            (float(power), float(watts))
            for power, watts in seen.groupby("power_w")["idle_w"].mean().items()
        ),
        noise_sd=float((np.log(sweep["latency_p95_s"] / sweep["latency_s"]) / 1.645).median()),
    )


def _fit_gpu_latency(seen: pd.DataFrame, work: Mapping[str, Work]) -> dict[str, Any]:
    names = ("gpu_s_per_flop", "gpu_s_per_byte", "gpu_s_per_kernel", "gpu_sm_exponent", "gpu_norm")
    counts = _columns(seen["network"], work)
    mode = power_modes().loc[seen["power_w"]]
    rates = (mode["gpu_sm"], mode["gpu_ghz"], mode["memory_gbs"], mode["cpu_ghz"])
    units, clock, memory, launch = (column.to_numpy(float) for column in rates)

    def latency(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        (a, b, c), g, p = np.exp(parameters[:3]), parameters[3], parameters[4]
        x = a * counts["flops"] / (units**g * clock)
        y = b * counts["bytes"] / memory
        z = c * counts["kernels"] / launch
        return (x**p + y**p + z**p) ** (1 / p)

    target = np.log(seen["latency_s"].to_numpy())
    start = [np.log(1e-13), np.log(1e-9), np.log(1e-5), 0.3, 1.5]
    bounds = ([-60, -60, -60, 0.0, 1.0], [0, 0, 0, 1.0, 8.0])
    fit = least_squares(
        lambda parameters: np.log(latency(parameters)) - target,
        start,
        bounds=bounds,
        **{"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 20_000},
    )
    values = [*np.exp(fit.x[:3]), *fit.x[3:]]
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _fit_gpu_energy(seen: pd.DataFrame, work: Mapping[str, Work]) -> dict[str, Any]:
    """Clock factor first, as ratios within a network; then joules per FLOP and byte at 15W."""
    energy = seen.pivot(index="network", columns="power_w", values="marginal_energy_j")
    ratios = energy.div(energy[15], axis=0).median()
    above = power_modes()["gpu_ghz"].loc[ratios.index] - power_modes()["gpu_ghz"].loc[15]
    design = np.column_stack([above, above**2])
    linear, square = np.linalg.lstsq(design, (ratios - 1).to_numpy(), rcond=None)[0]
    counts = _columns(energy.index.to_series(), work)
    joules = energy[15].to_numpy()
    # Dividing by the target makes the errors relative, so that small networks count as much.
    rates, _ = nnls(
        np.column_stack([counts["flops"], counts["bytes"]]) / joules[:, None], np.ones(len(joules))
    )
    return {
        "gpu_j_per_flop": float(rates[0]),
        "gpu_j_per_byte": float(rates[1]),
        "gpu_clock_energy": (float(linear), float(square)),
    }


def _dla_terms(network: str) -> tuple[float, float]:
    """Seconds x GHz and seconds x GB/s of one network on a DLA core, from 15W and MAXN alone."""
    table = dla_latency().query("network == @network").set_index("power_w")["latency_s"]
    modes = power_modes().loc[[15, 60]]
    design = np.column_stack([1 / modes["dla_ghz"], 1 / modes["memory_gbs"]])
    (clock, memory), _ = nnls(design, table.loc[[15, 60]].to_numpy())
    return float(clock), float(memory)


def _fit_dla_latency(work: Mapping[str, Work]) -> dict[str, Any]:
    """Seconds per FLOP and per byte: what the two counted networks need on average."""
    terms = np.array([_dla_terms(network) for network in DLA_COUNTED])
    counts = _columns(pd.Series(list(DLA_COUNTED.values())), work)
    return {
        "dla_s_per_flop": float(np.mean(terms[:, 0] / counts["flops"])),
        "dla_s_per_byte": float(np.mean(terms[:, 1] / counts["bytes"])),
    }


def _fit_dla_energy(seen: pd.DataFrame) -> dict[str, Any]:
    """DLA energy by clock: that of the GPU in the same mode, over the published ratio."""
    energy = seen.pivot(index="network", columns="power_w", values="marginal_energy_j")
    gpu = energy.div(energy[15], axis=0).median()
    ratio = dla_gpu_ratio().groupby("power_w")["ratio"].mean()
    clock = power_modes()["dla_ghz"]
    pairs = [(float(clock[power]), float(gpu[power] / ratio[power])) for power in (15, 30, 60)]
    return {"dla_energy": tuple(pairs)}


def _columns(networks: pd.Series, work: Mapping[str, Work]) -> dict[str, NDArray[np.float64]]:
    return {
        field: np.array([getattr(work[name], field) for name in networks], dtype=np.float64)
        for field in ("flops", "bytes", "kernels")
    }


def predictions(model: OrinModel) -> pd.DataFrame:
    """Every published figure beside the model's.

    Columns: ``source``, ``network``, ``power_w``, ``quantity``, ``published``, ``predicted``,
    ``held_out`` and ``error`` = predicted / published - 1.
    """
    tables = [
        _gpu_predictions(model, gpu_sweep(), scale=1.0, source="GPU sweep"),
        _gpu_predictions(
            model,
            gpu_sweep("orin_module_sweep_768x576.csv"),
            scale=(768 * 576) / (512 * 384),
            source="GPU sweep, 768x576",
        ),
        _dla_predictions(),
        _ratio_predictions(model),
    ]
    table = pd.concat(tables, ignore_index=True)
    table["error"] = table["predicted"] / table["published"] - 1
    return table


def _gpu_predictions(
    model: OrinModel, sweep: pd.DataFrame, scale: float, source: str
) -> pd.DataFrame:
    work = {name: read_work()[name].scaled(scale) for name in sweep["network"].unique()}
    held_out = (
        (sweep["power_w"] == HELD_OUT_POWER_W)
        | (sweep["network"] == HELD_OUT_NETWORK)
        | (scale != 1.0)
    )
    pairs = list(zip(sweep["network"], sweep["power_w"], strict=True))
    base = sweep[["network", "power_w"]].assign(source=source, held_out=held_out)
    quantities = {"latency_s": model.latency_s, "marginal_energy_j": model.marginal_energy_j}
    tables = []
    for quantity, predict in quantities.items():
        predicted = [predict(work[name], "gpu", power) for name, power in pairs]
        columns = {"quantity": quantity, "published": sweep[quantity], "predicted": predicted}
        tables.append(base.assign(**columns))
    return pd.concat(tables)


def _dla_predictions() -> pd.DataFrame:
    """Predict each network from its own 15W and MAXN figures, by clock and bandwidth."""
    table = dla_latency().rename(columns={"latency_s": "published"})
    modes = power_modes()
    terms = {network: _dla_terms(network) for network in table["network"].unique()}
    table["predicted"] = [
        terms[network][0] / modes.loc[power, "dla_ghz"]
        + terms[network][1] / modes.loc[power, "memory_gbs"]
        for network, power in zip(table["network"], table["power_w"], strict=True)
    ]
    held_out = table["power_w"].isin([30, 50])
    return table.assign(source="DLA table", quantity="latency_s", held_out=held_out)


def _ratio_predictions(model: OrinModel) -> pd.DataFrame:
    table = dla_gpu_ratio().rename(columns={"ratio": "published"})
    table["predicted"] = [
        model.gpu_energy_factor(power) / model.dla_energy_factor(power)
        for power in table["power_w"]
    ]
    held_out = table["power_w"] == HELD_OUT_POWER_W
    return table.assign(source="DLA over GPU", quantity="perf_per_watt_ratio", held_out=held_out)


def held_out_errors(model: OrinModel) -> pd.DataFrame:
    """Mean and greatest absolute relative error of the held-out rows, by source and level."""
    table = predictions(model).query("held_out")
    groups = table.assign(error=table["error"].abs()).groupby(["source", "quantity", "power_w"])
    return groups["error"].agg(rows="size", mean="mean", worst="max").reset_index()


def main() -> None:
    """Fit, write the parameters, print the held-out errors."""
    paths.need_checkout()
    model = calibrate()
    path = paths.DATA / "calibration" / "agx_orin.json"
    path.write_text(model.to_json())
    print(held_out_errors(model).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
