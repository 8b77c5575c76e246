"""What others measured on a Jetson AGX Orin, read from ``data/published``.

Sources stand in ``data/README.md``. Power levels are the modes of the 64GB module: 15W, 30W,
50W and MAXN, keyed here by 15, 30, 50 and 60 (MAXN has no cap; 60 W is the module's rating).
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from mllm_sched import paths

POWER_W = {"15W": 15, "30W": 30, "50W": 50, "MAXN": 60}


@lru_cache(maxsize=1)
def power_modes() -> pd.DataFrame:
    """Clocks and units per power level, indexed by ``power_w``.

    Columns: ``gpu_sm`` and ``cpu_cores`` (counts), ``gpu_ghz``, ``cpu_ghz``, ``dla_ghz``, and
    ``memory_gbs`` (GB/s of the 256-bit LPDDR5: two transfers of 32 bytes a clock).
    """
    raw = pd.read_csv(paths.PUBLISHED / "nvpmodel_agx_orin.csv")
    raw = raw[raw["module"].str.startswith("devkit")].set_index("mode")
    raw = raw.drop(columns="module").apply(pd.to_numeric)
    table = pd.DataFrame(
        {
            "gpu_sm": raw["gpu_sm"],
            "gpu_ghz": raw["gpu_max_mhz_jp6"] / 1e3,
            "cpu_cores": raw["online_cpu"],
            "cpu_ghz": raw["cpu_max_mhz"] / 1e3,
            "dla_ghz": raw["dla_core_mhz"] / 1e3,
            "memory_gbs": raw["emc_mhz"] * 2 * 32 / 1e3,
        }
    )
    return table.rename(index=POWER_W).rename_axis("power_w").sort_index()


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
    """Networks on the DLA, INT8 dense: columns ``network``, ``power_w``, ``latency_s`` per image.

    NVIDIA gives images per second of both cores; one core takes 2 / that.
    """
    table = _dla_table("dla2x_dense_ips")
    table["latency_s"] = 2.0 / table.pop("value")
    return table


def dla_gpu_ratio() -> pd.DataFrame:
    """Performance per watt of the DLA over the GPU, INT8 dense, accelerator power only.

    Columns ``network``, ``power_w``, ``ratio``.
    """
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
