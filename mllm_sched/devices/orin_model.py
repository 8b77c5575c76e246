"""The device model of a Jetson AGX Orin: latency and energy of an encoder on an arm.

Latency of work W (FLOPs, bytes, kernels) on one component, with x, y, z its three terms::

    T0 = (x^p + y^p + z^p)^(1/p)     x = a FLOPs / (units^g f),  y = b bytes / bandwidth,
                                     z = c kernels / f_cpu (launches; GPU only)
    T  = T0 / load / (1 - background) x (1 + kappa background)

Energy, which covers the module as its three power rails do::

    E  = P_idle T + E_marginal

What is fitted, and on what, stands in ``calibration.py``. What is marked *assumed* below has no
published measurement and is listed in DEVIATIONS.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from mllm_sched import paths
from mllm_sched.pipeline.work import Work

COMPONENTS = ("gpu", "cpu", "dla")

# Bandwidth left to one component while STREAM runs on all of them, MAXN, one run: GPU 0.92 and
# DLA 0.885 of what they have alone, CPU 1.03 (taken as no loss). Source: data/README.md.
CONTENTION = {"gpu": 1 / 0.92 - 1, "cpu": 0.0, "dla": 1 / 0.885 - 1}

# Assumed. A Cortex-A78AE has two 128-bit FP32 multiply-add pipes: 16 FLOPs a cycle at best.
CPU_FLOPS_PER_CYCLE = 16 * 0.5
# Assumed. 1.8 W a busy core at 2.2 GHz, of which the voltage's share falls with the clock.
CPU_J_PER_CYCLE = 0.8e-9
# Assumed. Handing a tensor from GPU to DLA or back: a reformat and a synchronisation.
CROSSING_S = 1e-4


# Modes of the 64GB module by their cap in watts; MAXN has none, and 60 W is the rating.
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


@dataclass(frozen=True)
class OrinModel:
    """Fitted parameters; marginal energy is what a task adds to an idle module."""

    gpu_s_per_flop: float  # the constant a, times GHz
    gpu_s_per_byte: float  # b, times GB/s
    gpu_s_per_kernel: float  # c, times GHz
    gpu_sm_exponent: float  # g, how much the number of active SMs counts, within [0, 1]
    gpu_norm: float  # p, at least 1
    gpu_j_per_flop: float  # marginal, at the clock of the 15W mode, as the next
    gpu_j_per_byte: float
    gpu_clock_energy: tuple[float, float]  # (u, v): over that at 15W, marginal energy is
    # 1 + u d + v d^2, with d the clock above that at 15W in GHz
    dla_s_per_flop: float  # of one DLA core, times GHz
    dla_s_per_byte: float  # times GB/s
    dla_energy: tuple[tuple[float, float], ...]  # (GHz of the DLA, its marginal energy over that
    # of the GPU at 15W)
    idle_w: tuple[tuple[float, float], ...]  # (power level, watts of the idle module)
    noise_sd: float  # standard deviation of the log latency of one task

    def latency_s(
        self, work: Work, component: str, power_w: float, load: float = 1.0, background: float = 0.0
    ) -> float:
        """Seconds to do the work with a share ``load`` of the component, others taking some."""
        alone = getattr(self, f"_{component}_latency_s")(work, power_w)
        contention = 1.0 + CONTENTION[component] * background
        return float(alone / load / (1.0 - background) * contention)

    def marginal_energy_j(self, work: Work, component: str, power_w: float) -> float:
        """Joules that the work adds to an idle module. The share does not change it."""
        return float(getattr(self, f"_{component}_marginal_j")(work, power_w))

    def idle_power_w(self, power_w: float) -> float:
        """Watts of the idle module, interpolated on the log of the power level."""
        levels, watts = zip(*self.idle_w, strict=True)
        return float(np.interp(np.log(power_w), np.log(levels), watts))

    def energy_j(
        self, work: Work, component: str, power_w: float, load: float = 1.0, background: float = 0.0
    ) -> float:
        """Joules of the module while the work runs, other tenants' own work left out."""
        seconds = self.latency_s(work, component, power_w, load, background)
        return self.idle_power_w(power_w) * seconds + self.marginal_energy_j(
            work, component, power_w
        )

    def tenants_energy_j(
        self, work: Work, component: str, power_w: float, load: float, background: float = 0.0
    ) -> float:
        """Joules of others who have the rest of the component meanwhile.

        Assumed: they draw in their share what this work would draw in it.
        """
        power = self.marginal_energy_j(work, component, power_w)
        power /= self.latency_s(work, component, power_w)
        others = 1.0 - load * (1.0 - background)
        return power * others * self.latency_s(work, component, power_w, load, background)

    def _gpu_latency_s(self, work: Work, power_w: float) -> float:
        mode = power_modes().loc[power_w]
        compute = self.gpu_s_per_flop * work.flops
        compute /= mode["gpu_sm"] ** self.gpu_sm_exponent * mode["gpu_ghz"]
        memory = self.gpu_s_per_byte * work.bytes / mode["memory_gbs"]
        launch = self.gpu_s_per_kernel * work.kernels / mode["cpu_ghz"]
        p = self.gpu_norm
        return float((compute**p + memory**p + launch**p) ** (1 / p))

    def _gpu_marginal_j(self, work: Work, power_w: float) -> float:
        return self._gpu_base_j(work) * self.gpu_energy_factor(power_w)

    def _gpu_base_j(self, work: Work) -> float:
        """At the clock of the 15W mode."""
        return self.gpu_j_per_flop * work.flops + self.gpu_j_per_byte * work.bytes

    def gpu_energy_factor(self, power_w: float) -> float:
        """Marginal energy of the GPU over that at 15W."""
        clocks = power_modes()["gpu_ghz"]
        above = clocks.loc[power_w] - clocks.loc[15]
        linear, square = self.gpu_clock_energy
        return float(1.0 + linear * above + square * above**2)

    def _cpu_latency_s(self, work: Work, power_w: float) -> float:
        mode = power_modes().loc[power_w]
        rate = mode["cpu_cores"] * mode["cpu_ghz"] * 1e9 * CPU_FLOPS_PER_CYCLE
        return float(work.flops / rate + work.bytes / (mode["memory_gbs"] * 1e9))

    def _cpu_marginal_j(self, work: Work, power_w: float) -> float:
        mode = power_modes().loc[power_w]
        cycles = self._cpu_latency_s(work, power_w) * mode["cpu_cores"] * mode["cpu_ghz"] * 1e9
        voltage = 0.6 + 0.4 * mode["cpu_ghz"] / 2.2  # relative to that at 2.2 GHz
        return float(CPU_J_PER_CYCLE * voltage**2 * cycles)

    def _dla_latency_s(self, work: Work, power_w: float) -> float:
        """What the DLA cannot take runs on the GPU, and tensors cross in between."""
        mode = power_modes().loc[power_w]
        placed = self.dla_s_per_flop * work.dla_flops / mode["dla_ghz"]
        placed += self.dla_s_per_byte * work.dla_bytes / mode["memory_gbs"]
        rest = work.without_dla()
        if not rest.kernels:
            return float(placed)
        return float(
            placed + self._gpu_latency_s(rest, power_w) + 2 * work.dla_segments * CROSSING_S
        )

    def _dla_marginal_j(self, work: Work, power_w: float) -> float:
        rest = work.without_dla()
        on_gpu = self._gpu_marginal_j(rest, power_w)
        placed = self._gpu_base_j(work) - self._gpu_base_j(rest)
        return placed * self.dla_energy_factor(power_w) + on_gpu

    def dla_energy_factor(self, power_w: float) -> float:
        """Marginal energy of the DLA over that of the GPU at 15W."""
        clocks, factors = zip(*self.dla_energy, strict=True)
        return float(np.interp(power_modes().loc[power_w, "dla_ghz"], clocks, factors))

    def to_json(self) -> str:
        """As text, every digit kept."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> OrinModel:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        pairs = {
            name: tuple(tuple(pair) for pair in values[name]) for name in ("dla_energy", "idle_w")
        }
        return cls(**{**values, **pairs, "gpu_clock_energy": tuple(values["gpu_clock_energy"])})


@lru_cache(maxsize=1)
def calibrated_model() -> OrinModel:
    """The model as calibrated, from ``data/calibration/agx_orin.json``."""
    return OrinModel.from_json((paths.DATA / "calibration" / "agx_orin.json").read_text())
