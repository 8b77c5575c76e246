"""Adapters of libraries for Bayesian optimisation: BoTorch, bayesian-optimization and SafeOpt.

Their models are of log energy and log latency, on the inputs of ``peers_gp.py``.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import numpy as np
from peers_gp import NOISE, WIDTH, Array, Model

from mllm_sched import ArmSpace


class BoTorch(Model):
    """``LogConstrainedExpectedImprovement`` over the arms; two ``SingleTaskGP``, as they come.

    The best value so far is the least mean among tried arms whose mean is within the limit: single
    measurements have noise. Where there is none, ``LogProbabilityOfFeasibility``.
    """

    name, module, fitted = "BoTorch constrained EI, kept", "botorch", True
    always = False

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        import torch

        super().__init__(space, limit_s, seeds, seed)
        torch.manual_seed(seed)
        self.choices = torch.as_tensor(self.x)
        self.models: list = []

    def _choose(self) -> int:
        from botorch.acquisition.analytic import (
            LogConstrainedExpectedImprovement,
            LogProbabilityOfFeasibility,
        )
        from botorch.models import ModelListGP
        from botorch.optim import optimize_acqf_discrete

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._fit(self.always or self.due())
            model, bounds = ModelListGP(*self.models), {1: (None, self.log_limit)}
            best = self._best(model)
            if best is None:
                value = LogProbabilityOfFeasibility(model, bounds)
            else:
                value = LogConstrainedExpectedImprovement(model, best, 0, bounds, maximize=False)
            chosen, _ = optimize_acqf_discrete(value, q=1, choices=self.choices)
        return int((self.choices == chosen).all(dim=1).nonzero()[0])

    def _fit(self, fit: bool) -> None:
        """Models of all measurements; without a fit they have the kernels of those before."""
        import torch
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from gpytorch.mlls import ExactMarginalLogLikelihood

        x = self.choices[self.arms]
        parts = ("likelihood", "covar_module", "mean_module")
        made = []
        for index, values in enumerate((self.log_energy, self.log_latency)):
            y = torch.tensor(values, dtype=torch.float64)[:, None]
            keep = self.models and not fit
            kept = {part: getattr(self.models[index], part) for part in parts} if keep else {}
            made.append(SingleTaskGP(x, y, **kept))
            if fit:
                fit_gpytorch_mll(ExactMarginalLogLikelihood(made[-1].likelihood, made[-1]))
        self.models = made

    def _best(self, model) -> float | None:  # a type of a library that may be missing
        import torch

        with torch.no_grad():
            energy, latency = model.posterior(self.choices[sorted(set(self.arms))]).mean.T
        feasible = energy[latency <= self.log_limit]
        return float(feasible.min()) if len(feasible) else None


class BoTorchRefit(BoTorch):
    """The same with hyperparameters fitted at every decision, as its tutorials do."""

    name = "BoTorch constrained EI, refit"
    always = True


class BayesOpt(Model):
    """``BayesianOptimization`` with a constraint: its expected improvement, refit every time.

    Every input is a continuous parameter, and what it suggests is rounded to the nearest arm; its
    categorical parameters are experimental, and took 2 s a decision. Its ``alpha`` is raised to the
    variance of noise, as its documentation says.
    """

    name, module = "bayesian-optimization, refit", "bayes_opt"

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        from bayes_opt import BayesianOptimization
        from scipy.optimize import NonlinearConstraint

        super().__init__(space, limit_s, seeds, seed)
        self.columns = [f"x{column:03d}" for column in range(self.x.shape[1])]
        self.optimizer = BayesianOptimization(
            None,
            dict.fromkeys(self.columns, (0.0, 1.0)),
            constraint=NonlinearConstraint(lambda **_: math.nan, -np.inf, self.log_limit),
            random_state=seed,
            verbose=0,
            allow_duplicate_points=True,
        )
        self.optimizer.set_gp_params(alpha=NOISE**2)
        self.optimizer.constraint.model[0].set_params(alpha=NOISE**2)

    def _choose(self) -> int:
        if min(self.log_latency) > self.log_limit:  # it cannot go on before one point is allowed
            return self.seeds[len(self.arms) % len(self.seeds)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = self.optimizer.suggest()
        return self.nearest(np.array([wanted[column] for column in self.columns]))

    def _learn(self, arm: int) -> None:
        told = -self.log_energy[-1], self.log_latency[-1]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that an arm came again
            # Of the space: the optimiser's own goes through all its results, to log them.
            self.optimizer.space.register(self.x[arm], *told)


@contextlib.contextmanager
def older_names() -> Iterator[None]:
    """Names that SafeOpt 0.16 needs, for as long as it runs; see the head of ``peers.py``."""
    with (
        patch.object(collections, "Sequence", collections.abc.Sequence, create=True),
        patch.object(np, "float", float, create=True),
    ):
        yield


class SafeOpt(Model):
    """``SafeOpt`` on GPy models: the most uncertain of likely minimisers and expanders.

    Its models are given, not learned: the hyperparameters of safe-gp-ucb.
    """

    name, module = "SafeOpt", "safeopt"
    by_bound = False
    optimizer = None

    def _choose(self) -> int:
        with older_names(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optimizer = self.optimizer or self._made()
            try:
                wanted = self.optimizer.optimize(ucb=self.by_bound)
            except OSError:  # what it raises when it holds no arm safe
                return self.seeds[len(self.arms) % len(self.seeds)]
        return self.nearest(wanted)

    def _made(self):
        import GPy
        from safeopt import SafeOpt as Optimizer

        kinds = sum(len(f.levels) for f in self.space.factors if f.categorical)
        # A component tells half of another: a distance of sqrt(2) at a length-scale of 1.17.
        lengths = [1.17] * kinds + [1.0] * (self.x.shape[1] - kinds)
        models = []
        for values in self._values(slice(None)).T:
            kernel = GPy.kern.Matern52(len(lengths), 1.0, lengths, ARD=True)
            data = self.x[self.arms], values[:, None]
            models.append(GPy.models.GPRegression(*data, kernel, noise_var=NOISE**2))
        return Optimizer(models, self.x, fmin=[-np.inf, 0.0], beta=WIDTH)

    def _values(self, part: slice) -> Array:
        """What it maximises, and what it keeps above 0."""
        energy = self.log_energy[0] - np.array(self.log_energy[part])
        return np.column_stack([energy, self.log_limit - np.array(self.log_latency[part])])

    def _learn(self, arm: int) -> None:
        if self.optimizer:
            self.optimizer.add_new_data_point(self.x[[arm]], self._values(slice(-1, None)))


class SafeOptUCB(SafeOpt):
    """Its option ``ucb``: the least lower bound of energy within its safe set."""

    name = "SafeOpt, safe UCB"
    by_bound = True
