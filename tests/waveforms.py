"""Loads with known energy, for the tests of meters."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """Power over time, and its exact integral from 0."""

    power_w: object
    energy_j: object

    def between(self, start_s, end_s):
        return float(self.energy_j(end_s) - self.energy_j(start_s))


def pulses(base_w, top_w, period_s, width_s):
    """``top_w`` for the first ``width_s`` of every period, ``base_w`` else."""

    def power(t):
        return np.where(np.mod(t, period_s) < width_s, top_w, base_w)

    def energy(t):
        whole, rest = np.divmod(t, period_s)
        high = whole * width_s + np.minimum(rest, width_s)
        return base_w * t + (top_w - base_w) * high

    return Load(power, energy)


def ramp(low_w, high_w, period_s):
    def power(t):
        return low_w + (high_w - low_w) * np.mod(t, period_s) / period_s

    def energy(t):
        whole, rest = np.divmod(t, period_s)
        part = low_w * rest + (high_w - low_w) * rest**2 / (2 * period_s)
        return whole * period_s * (low_w + high_w) / 2 + part

    return Load(power, energy)


LOADS = {
    "constant": pulses(12.0, 12.0, 1.0, 0.5),
    "square": pulses(8.0, 40.0, 0.7, 0.3),
    "ramp": ramp(8.0, 38.0, 5.0),
    "spikes shorter than the period": pulses(10.0, 15.0, 0.1, 0.005),
    "idle-heavy": pulses(8.0, 30.0, 2.3, 0.13),
}
