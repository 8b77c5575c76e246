"""How well sampled energy can be known: loads with a known integral, measured over and over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.harness.fake_jetson.waveforms import Pulses, Ramp, Waveform, constant
from mllm_sched.harness.ina3221 import HIGHEST_W
from mllm_sched.harness.sampler import Samples, integrate

LOADS: Mapping[str, Waveform] = MappingProxyType(
    {
        "constant": constant(12.0),
        "square": Pulses(8.0, 40.0, 0.7, 0.3),
        "ramp": Ramp(8.0, 38.0, 5.0),
        "spikes of 5 ms": Pulses(10.0, 15.0, 0.1, 0.005),
        "idle-heavy": Pulses(8.0, 30.0, 2.3, 0.13),
    }
)
"""Loads of a module: none of their periods is a multiple of another's."""

Phases = Callable[[int, np.random.Generator], NDArray[np.float64]]
SCHEDULES: Mapping[str, Phases] = MappingProxyType(
    {
        "random": lambda n, rng: rng.random(n),
        "equal steps": lambda n, rng: np.full(n, rng.random()),
    }
)
"""When a reading is taken within its period: as this harness does, and as most do."""


class OneRail:
    """What ``integrate`` wants to know of the rail that the loads stand for."""

    names: tuple[str, ...] = ("module",)
    counted: tuple[str, ...] = ("module",)
    range_w: tuple[float, float] = (0.0, HIGHEST_W)


def windows(
    loads: Mapping[str, Waveform],
    seconds: Iterable[float],
    rates_hz: Iterable[float],
    repeats: int,
    seed: int = 0,
    schedules: Iterable[str] = ("random",),
) -> pd.DataFrame:
    """Measure windows that begin at random times, as if every reading were taken when due.

    ``repeats`` are windows of each kind, ``schedules`` names of ``SCHEDULES``.

    A row per window: ``load``, ``window_s``, ``rate_hz``, ``schedule``, ``error`` (relative),
    ``half_width`` (of the 95 % interval, relative to the truth), ``covered``.
    """
    rng = np.random.default_rng(seed)
    rows = [
        (*kind, *_window(loads[kind[0]], *kind[1:3], SCHEDULES[kind[3]], rng))
        for kind in product(loads, seconds, rates_hz, schedules)
        for _ in range(repeats)
    ]
    columns = ["load", "window_s", "rate_hz", "schedule", "error", "half_width", "covered"]
    return pd.DataFrame(rows, columns=columns)


def _window(
    load: Waveform, seconds: float, rate_hz: float, phases: Phases, rng: np.random.Generator
) -> tuple[float, float, bool]:
    start_s, width_s = 40 * rng.random(), 1 / rate_hz
    count = int(np.ceil(seconds / width_s))
    times = start_s + width_s * (np.arange(count) + phases(count, rng))
    power = np.asarray(load.power_w(times), dtype=np.float64) + np.zeros(count)
    samples = Samples(times, np.full(count, width_s), power[:, None])
    reading = integrate(samples, start_s, start_s + seconds, OneRail(), rate_hz)
    truth_j = load.energy_j(start_s, start_s + seconds)
    half_width = (reading.high_j - reading.low_j) / 2 / truth_j
    return reading.energy_j / truth_j - 1, half_width, reading.low_j <= truth_j <= reading.high_j


def summary(table: pd.DataFrame, by: Iterable[str]) -> pd.DataFrame:
    """Typical (root mean square) and worst error, interval and coverage of each kind."""
    groups = table.assign(worst=table["error"].abs(), square=table["error"] ** 2).groupby(
        list(by), sort=False
    )
    found = groups.agg(
        error=("square", "mean"),
        worst=("worst", "max"),
        half_width=("half_width", "mean"),
        covered=("covered", "mean"),
    )
    return found.assign(error=np.sqrt(found["error"])).reset_index()
