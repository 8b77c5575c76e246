"""Hyperparameters from a table: GPyTorch kernels over an arm space, fitted by marginal likelihood.

The only scheduler code that needs PyTorch. Studies keep its results as data; see
``data/hyperparameters``.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from numpy.typing import ArrayLike

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.gp import Hyperparameters

# In units of a factor's whole range. Beyond twice the range a length-scale cannot be told from a
# straight line: the likelihood only trades it against the variance, without end.
LENGTH_SCALES = Interval(0.05, 2.0)


class CategoricalKernel(Kernel):
    """Compound symmetry: 1 between equal levels, ``correlation`` between different ones."""

    has_lengthscale = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_parameter("raw_correlation", torch.nn.Parameter(torch.zeros(())))
        self.register_constraint("raw_correlation", Interval(1e-4, 1 - 1e-4))

    @property
    def correlation(self) -> torch.Tensor:
        """Correlation between two different levels, within (0, 1)."""
        return self.raw_correlation_constraint.transform(self.raw_correlation)

    def forward(
        self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **params: Any
    ) -> torch.Tensor:
        """Covariance of codes, shapes (..., n, 1) and (..., m, 1) to (..., n, m)."""
        other = x1[..., 0] if diag else x1
        same = other == (x2[..., 0] if diag else x2.transpose(-1, -2))
        one = torch.ones((), dtype=x1.dtype, device=x1.device)
        return torch.where(same, one, self.correlation.to(x1.dtype))


class ArmKernel(ScaleKernel):
    """Product over the factors of a space: categorical, or Matern 5/2 where ordered.

    Input is ``space.features()``, shape (..., arms, factors).
    """

    def __init__(self, space: ArmSpace) -> None:
        parts: list[Kernel] = []
        for column, factor in enumerate(space.factors):
            if factor.categorical:
                parts.append(CategoricalKernel(active_dims=(column,)))
            else:
                parts.append(
                    MaternKernel(
                        nu=2.5, active_dims=(column,), lengthscale_constraint=LENGTH_SCALES
                    )
                )
        kernel = parts[0]
        for part in parts[1:]:
            kernel = kernel * part
        super().__init__(kernel, outputscale_constraint=Positive())
        self.parts = torch.nn.ModuleList(parts)
        self.double()

    def load(self, values: Hyperparameters) -> ArmKernel:
        """Set every parameter; returns the kernel itself."""
        if len(values.factors) != len(self.parts):
            raise ValueError(f"{len(values.factors)} hyperparameters for {len(self.parts)} factors")
        self.initialize(outputscale=_exact(values.variance))
        for part, value in zip(self.parts, values.factors, strict=True):
            if isinstance(part, CategoricalKernel):
                raw = part.raw_correlation_constraint.inverse_transform(_exact(value))
                part.initialize(raw_correlation=raw)
            else:
                part.initialize(lengthscale=_exact(value))  # type: ignore[operator]
        return self

    def values(self, noise_variance: float) -> Hyperparameters:
        """The parameters as plain numbers."""
        factors = tuple(
            (part.correlation if isinstance(part, CategoricalKernel) else part.lengthscale).item()  # type: ignore[operator]
            for part in self.parts
        )
        return Hyperparameters(self.outputscale.item(), noise_variance, factors)


def _exact(value: float) -> torch.Tensor:
    """A number in double precision; GPyTorch would take a plain one for a single."""
    return torch.tensor(value, dtype=torch.float64)


class ArmGP(gpytorch.models.ExactGP):
    """Exact GP over arm features with a constant mean; the reference the recursion is held to."""

    def __init__(
        self,
        space: ArmSpace,
        features: ArrayLike,
        values: ArrayLike,
        hyperparameters: Hyperparameters,
        mean: float,
    ) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=Positive()).double()
        likelihood.noise = _exact(hyperparameters.noise_variance)
        super().__init__(
            torch.as_tensor(np.array(features, dtype=np.float64)),
            torch.as_tensor(np.array(values, dtype=np.float64)),
            likelihood,
        )
        self.mean_module = gpytorch.means.ConstantMean().double()
        self.mean_module.initialize(constant=_exact(mean))
        self.covar_module = ArmKernel(space).load(hyperparameters)

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Prior at the features x, shape (..., n, factors)."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fit_hyperparameters(
    space: ArmSpace, features: ArrayLike, values: ArrayLike, steps: int = 50
) -> Hyperparameters:
    """Hyperparameters of greatest marginal likelihood, by L-BFGS from the defaults.

    Parameters
    ----------
    features
        Rows of ``space.features()``, shape (n, factors); an arm may come more than once.
    values
        The quantity in logs, shape (n,); or shape (profiles, n) for several profiles of the same
        rows, each with a mean of its own, which then share their hyperparameters.
    steps
        Greatest number of L-BFGS iterations.
    """
    profiles = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if profiles.shape[-1] < 2 or not np.isfinite(profiles).all():
        raise ValueError(f"values of shape {profiles.shape}: expected at least 2, all finite")
    centred = profiles - profiles.mean(axis=1, keepdims=True)
    rows = np.broadcast_to(
        np.asarray(features, dtype=np.float64), (*profiles.shape, len(space.factors))
    )
    model = ArmGP(space, rows, centred, Hyperparameters.default(space), 0.0)
    model.mean_module.raw_constant.requires_grad_(False)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.LBFGS(free, max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -objective(model(*model.train_inputs), model.train_targets).sum()
        value.backward()
        return value

    # The default of Cholesky above 800 rows is conjugate gradients: neither exact nor repeatable.
    with gpytorch.settings.max_cholesky_size(10**6):
        optimiser.step(loss)
    kernel: ArmKernel = model.covar_module
    return kernel.values(model.likelihood.noise.item())
