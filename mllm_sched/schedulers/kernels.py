"""How alike two arms are: the prior covariance of an arm space, from a few hyperparameters.

A categorical factor says how much one of its levels tells about another; an ordered factor is
smooth. The covariance of two arms is the product over the factors, times a variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hyperparameters:
    """Of one quantity, in logs.

    Parameters
    ----------
    variance
        Prior variance of log value over the arms.
    noise_variance
        Variance of one log measurement.
    factors
        One number per factor of the space, in order: the correlation between two levels of a
        categorical factor, within (0, 1), or the length-scale of an ordered one, above 0, in
        units of the factor's whole range.
    """

    variance: float
    noise_variance: float
    factors: tuple[float, ...]

    @classmethod
    def default(cls, space: ArmSpace) -> Hyperparameters:
        """For when nothing was measured: values vary by e, smooth over the range, noise 5 %."""
        return cls(1.0, 0.05**2, tuple(0.5 if f.categorical else 1.0 for f in space.factors))


def matern(distance: Array) -> Array:
    """Matern 5/2 correlation at a distance in units of the length-scale."""
    scaled = np.sqrt(5.0) * distance
    correlation: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return correlation


@lru_cache(maxsize=64)
def covariance(space: ArmSpace, hyperparameters: Hyperparameters) -> Array:
    """Prior covariance of all arms, shape (arms, arms), float64, read-only.

    Raises ValueError unless there is one number per factor, within its range.
    """
    values = hyperparameters.factors
    if len(values) != len(space.factors):
        raise ValueError(f"{len(values)} hyperparameters for {len(space.factors)} factors")
    for factor, value in zip(space.factors, values, strict=True):
        if not 0 < value < (1 if factor.categorical else np.inf):
            wanted = "a correlation within (0, 1)" if factor.categorical else "a length above 0"
            raise ValueError(f"hyperparameter {value} of {factor.name}: expected {wanted}")
    dense = np.full((len(space), len(space)), float(hyperparameters.variance))
    for factor, column, value in zip(space.factors, space.features().T, values, strict=True):
        apart = np.abs(column[:, None] - column[None])
        dense *= np.where(apart == 0, 1.0, value) if factor.categorical else matern(apart / value)
    dense.flags.writeable = False
    return dense
