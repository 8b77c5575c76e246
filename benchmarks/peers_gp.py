"""Two Gaussian processes, of log energy and log latency, and the rule that a user would write.

Inputs are the factors within [0, 1], a categorical one as one column per level. Hyperparameters
that are *kept* are fitted at every measurement up to 20, at 40, 80, 160, ..., and used in between.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from peers import Array, Peer

from mllm_sched import ArmSpace

EVERY = 20  # measurements up to which kept hyperparameters are fitted each time
WIDTH = 2.0  # standard deviations, as safe-gp-ucb has it
NOISE = 0.05  # standard deviation of a log measurement where none is learned, as safe-gp-ucb has it


def inputs(space: ArmSpace) -> Array:
    """Arms as model input, shape (arms, columns)."""
    columns: list[NDArray] = []
    for factor, column in zip(space.factors, space.features().T, strict=True):
        levels = np.arange(len(factor.levels))
        columns.append(column[:, None] == levels if factor.categorical else column[:, None])
    return np.hstack(columns).astype(np.float64)


class Model(Peer):
    """Inputs, and when hyperparameters are due."""

    fitted: ClassVar[bool] = False  # whether its hyperparameters are learned
    next_fit: float = 1

    @cached_property
    def x(self) -> Array:
        """All arms, shape (arms, columns)."""
        return inputs(self.space)

    def nearest(self, place: Array) -> int:
        """The arm that an input lies at, or nearest to."""
        return int(((self.x - place) ** 2).sum(axis=1).argmin())

    def due(self) -> bool:
        """Whether to fit now."""
        told = len(self.arms)
        if told < self.next_fit:
            return False
        self.next_fit = told + 1 if told < EVERY else 2 * told
        return True

    def keep(self) -> None:
        """Fit now, and never again."""
        if self.fitted:
            self._choose()
            self.next_fit = math.inf

    def safe(self, energy: Array, energy_sd: Array, latency: Array, latency_sd: Array) -> int:
        """Least lower bound of energy where the upper bound of latency is within the limit.

        Trusted arms count as safe unless their lower bound is beyond it. If no arm is safe, the one
        most likely to be within the limit.
        """
        allowed = latency + WIDTH * latency_sd <= self.log_limit
        allowed[self.seeds] |= (latency - WIDTH * latency_sd <= self.log_limit)[self.seeds]
        if not allowed.any():
            return int(((latency - self.log_limit) / latency_sd).argmin())
        return int(np.where(allowed, energy - WIDTH * energy_sd, np.inf).argmin())


class ScikitLearn(Model):
    """``GaussianProcessRegressor``: constant times Matern 5/2 plus white noise, normalised."""

    name, module, fitted = "scikit-learn GP, safe rule", "sklearn", True
    next_fit = 10  # without priors, fewer measurements give hyperparameters that are far too sure

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        super().__init__(space, limit_s, seeds, seed)
        smooth = ConstantKernel(1.0) * Matern(np.ones(self.x.shape[1]), (0.05, 20.0), nu=2.5)
        self.kernels = [smooth + WhiteKernel(NOISE**2, (1e-6, 1.0))] * 2

    def _choose(self) -> int:
        from sklearn.gaussian_process import GaussianProcessRegressor

        optimizer = "fmin_l_bfgs_b" if self.due() else None
        moments: list[Array] = []
        for index, values in enumerate((self.log_energy, self.log_latency)):
            model = GaussianProcessRegressor(
                self.kernels[index], optimizer=optimizer, normalize_y=True, random_state=self.seed
            )
            with warnings.catch_warnings():  # of length-scales at their bounds
                warnings.simplefilter("ignore")
                model.fit(self.x[self.arms], values)
            self.kernels[index] = model.kernel_
            mean, sd = model.predict(self.x, return_std=True)
            noise = model.kernel_.k2.noise_level * np.var(values)  # is in sd, and in no true mean
            moments += [mean, np.sqrt(np.maximum(sd**2 - noise, 1e-12))]
        return self.safe(*moments)


class GPyTorch(Model):
    """Exact GPs with the kernel and hyperparameters of safe-gp-ucb: its rule as a batch."""

    name, module = "GPyTorch GP, safe rule, fixed", "gpytorch"

    def _choose(self) -> int:
        import gpytorch
        import torch

        from mllm_sched.schedulers.gp import Hyperparameters
        from mllm_sched.schedulers.hyperparameter_fit import ArmGP

        values, features = Hyperparameters.default(self.space), self.space.features()
        everywhere, moments = torch.as_tensor(features.copy()), []
        means = (self.log_energy[0], self.log_limit)
        # Beyond 800 rows the default is conjugate gradients, which is not exact.
        with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**6):
            for logs, mean in zip((self.log_energy, self.log_latency), means, strict=True):
                model = ArmGP(self.space, features[self.arms], logs, values, mean).eval()
                belief = model(everywhere)
                moments += [belief.mean.numpy(), belief.variance.clamp_min(1e-12).sqrt().numpy()]
        return self.safe(*moments)
