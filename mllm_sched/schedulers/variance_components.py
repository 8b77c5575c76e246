"""A Gaussian process whose kernel is learned online: a sum of kernels with learned weights.

The logs of latency and power are close to sums over the factors: a constant, a trend along each
ordered factor, a smooth deviation from it, and a rest. Each term comes twice, once shared by all
arms and once for each component by itself. The prior covariance is

    K = sum over terms b of weight_b K_b                                                     (1)

with the weights averaged over fixed draws from a broad prior, each by its marginal likelihood
given the arms measured so far (Bayesian quadrature by importance sampling; the weighted sum of
kernels is the exact covariance of the mixture). Of the measurements only count, mean and scatter
per cell are kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.gp import FinitePosterior, matern
from mllm_sched.schedulers.state import Stateful

Array = NDArray[np.float64]

# Medians of the prior on the weights, in squared logs, and their spread in logs. Factors change
# latency several-fold; what is left beside their product is some percent to some tens of percent.
CONSTANT, TREND, SMOOTH, REST = (1.0, 0.5), (0.7, 1.0), (0.05, 1.5), (0.01, 1.5)
OWN = {"constant": (0.5, 1.0), "trend": (0.2, 1.5), "smooth": (0.05, 1.5), "rest": (0.02, 1.5)}
DRAWS = 256
LENGTH_SCALE = 0.5  # of smooth deviations, in units of a factor's range
NOISE_SD, NOISE_WEIGHT = 0.05, 2.0  # of one log measurement, as if seen that many times
KEPT_CELLS = 400  # up to which the kernels between all cells are kept, some ten matrices
REFIT_GROWTH = 1.1  # weights are learned anew whenever there are a tenth more measurements
AT_ONCE = 2**16  # numbers in the covariances that are factorised at once: they stay in the cache


class VarianceComponents(Stateful):
    """Belief over the log of one quantity; ``mean`` is its prior mean until the first measurement.

    ``posterior`` holds mean and covariance of every cell, ``counts`` the measurements of each.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        *("counts", "_means", "_squares", "_noise_prior", "_prior_mean", "_centred"),
        *("_elsewhere", "_elsewhere_means", "_told", "_due", "_weights", "posterior"),
    )

    def __init__(self, space: ArmSpace, mean: float) -> None:
        self.space = space
        self._draws = _draws(space)
        self.counts = np.zeros(len(space))
        self._means = np.zeros(len(space))
        self._squares = np.zeros(len(space))  # sums of squared deviations from the mean
        self._elsewhere = np.zeros(len(space))  # precision of measurements of other devices
        self._elsewhere_means = np.zeros(len(space))
        self._noise_prior = (NOISE_SD**2, NOISE_WEIGHT)
        self._noise_variance: float | None = None  # until it is asked for, after each measurement
        self._prior_mean, self._centred = mean, False
        self._told = 0
        self._due = 2
        self._rebuild(self._draws.mean(axis=0))

    @property
    def mean(self) -> Array:
        """Posterior mean of every cell, shape (cells,)."""
        return self.posterior.mean

    def sd(self) -> Array:
        """Posterior standard deviation of every cell, shape (cells,)."""
        return self.posterior.sd()

    def sd_after(self, cells: NDArray[np.int64]) -> Array:
        """The same once these cells will have been observed; see ``FinitePosterior``."""
        return self.posterior.sd_after(cells)

    @property
    def noise_variance(self) -> float:
        """Of one measurement, from the scatter within cells."""
        if self._noise_variance is None:
            variance, weight = self._noise_prior
            total, squares = np.add.reduce(self.counts), np.add.reduce(self._squares)
            freedom = total - np.count_nonzero(self.counts)  # all but one of each cell
            self._noise_variance = float((weight * variance + squares) / (weight + freedom))
        return self._noise_variance

    def set_state(self, state: dict[str, Any]) -> None:
        """See ``Stateful``."""
        super().set_state(state)
        self._noise_variance = None

    def scatter(self, cell: int) -> float:
        """Standard deviation of the next measurement of a cell."""
        return math.sqrt(float(self.posterior.covariance[cell, cell]) + self.noise_variance)

    def tell(self, cell: int, value: float, *, measured: bool = True) -> None:
        """Observe one log measurement, or what stands in for one."""
        if measured:
            self._centre(value)
        self._told += 1
        self.counts[cell] += 1
        off = value - self._means[cell]
        self._means[cell] += off / self.counts[cell]
        self._squares[cell] += off * (value - self._means[cell])
        self._noise_variance = None
        self.posterior.tell(cell, value)

    def tell_elsewhere(
        self, cell: int, value: float, scatter: float, *, measured: bool = True
    ) -> None:
        """Observe a measurement of another device, whose arms lie ``scatter`` from ours.

        It says nothing of the noise, and stays as vague however much is learned.
        """
        if measured:
            self._centre(value)
        self._told += 1
        variance = self.noise_variance + scatter**2
        self._elsewhere[cell] += 1.0 / variance
        off = value - self._elsewhere_means[cell]
        self._elsewhere_means[cell] += off / variance / self._elsewhere[cell]
        self.posterior.tell(cell, value, variance)

    def _centre(self, value: float) -> None:
        if not self._centred:
            self._prior_mean, self._centred = value, True
            self._rebuild(self._weights)

    def expected_above(self, cell: int, bound: float) -> float:
        """What stands in for a measurement of which only a bound is known."""
        return self.posterior.expected_above(cell, bound)

    def learn(self) -> None:
        """Learn the weights of (1) anew, if enough was observed since the last time."""
        if self._told >= self._due:
            self._due = max(self._told + 1, int(self._told * REFIT_GROWTH) + 1)
            self._rebuild(self._learned())

    def forget(self, cells: NDArray[np.bool_]) -> None:
        """Drop the measurements of some cells, but not what they say of weights and noise."""
        variance, weight = self._noise_prior
        freedom = float(weight + np.maximum(self.counts[cells] - 1, 0).sum())
        pooled = float((weight * variance + self._squares[cells].sum()) / freedom)
        self._noise_prior, self._noise_variance = (pooled, min(freedom, 10.0)), None
        for statistic in (self.counts, self._means, self._squares, self._elsewhere):
            statistic[cells] = 0.0
        self._rebuild(self._weights)

    def _learned(self) -> Array:
        """Weights averaged over the draws by their marginal likelihood, shape (terms,)."""
        seen, means, variances = self._evidence()
        size = len(seen)
        # The noise as one more term, of weight 1; and the values as one more row, so that the last
        # row of the Cholesky factor is the values whitened. The corner only has to exist.
        terms = np.zeros((self._draws.shape[1] + 1, size + 1, size + 1))
        terms[:-1, :size, :size] = self._terms(seen, seen)
        terms[-1, :size, :size] = np.diag(variances)
        terms[-1, size, :size] = means - self._prior_mean
        terms[-1, size, size] = 1e300
        flat, draws = terms.reshape(len(terms), -1), np.column_stack([self._draws, np.ones(DRAWS)])
        likelihood = np.empty(DRAWS)
        part = 32 * max(1, AT_ONCE // (32 * flat.shape[1]))
        for start in range(0, DRAWS, part):
            covariances = (draws[start : start + part] @ flat).reshape(-1, size + 1, size + 1)
            factors = np.linalg.cholesky(covariances)
            whitened = factors[:, size, :size]
            determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)[:, :size]).sum(axis=1)
            likelihood[start : start + part] = -0.5 * (whitened**2).sum(axis=1) - determinants
        share = np.exp(likelihood - likelihood.max())
        weights: Array = share @ self._draws / share.sum()
        return weights

    def _evidence(self) -> tuple[NDArray[np.int64], Array, Array]:
        """Observed cells, their means, and the variances of these."""
        here = self.counts / self.noise_variance
        precision = here + self._elsewhere
        seen = precision.nonzero()[0]
        total = here * self._means + self._elsewhere * self._elsewhere_means
        return seen, total[seen] / precision[seen], 1.0 / precision[seen]

    def _rebuild(self, weights: Array) -> None:
        """The posterior from the counts and means, with these weights."""
        self._weights = weights
        everywhere = np.arange(len(self.space))
        seen, means, variances = self._evidence()
        prior = np.tensordot(weights, self._terms(everywhere, everywhere), 1)
        prior.flags.writeable = False  # so that the posterior makes no copy
        self.posterior = FinitePosterior(self._prior_mean, prior, self.noise_variance)
        if len(seen):
            cross = prior[:, seen]
            within = cross[seen] + np.diag(variances)
            gain = np.linalg.solve(within, cross.T).T
            self.posterior.mean += gain @ (means - self._prior_mean)
            covariance = prior - gain @ cross.T
            self.posterior.covariance = np.ascontiguousarray((covariance + covariance.T) / 2)

    def _terms(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
        """The kernels of (1) between some cells, shape (terms, rows, columns)."""
        if len(self.space) > KEPT_CELLS:
            features = self.space.features()
            return _kernels(self.space, features[rows], features[columns])
        kept = _all_kernels(self.space)
        return kept if len(rows) == len(self.space) else kept[:, rows[:, None], columns]


@lru_cache(maxsize=8)
def _all_kernels(space: ArmSpace) -> Array:
    """The kernels of (1) between all cells, which every scheduler on alike arms shares."""
    kernels = _kernels(space, space.features(), space.features())
    kernels.flags.writeable = False
    return kernels


def _kernels(space: ArmSpace, rows: Array, columns: Array) -> Array:
    """The kernels of (1) between cells of these features, in the order of ``_priors``."""
    categorical = [index for index, factor in enumerate(space.factors) if factor.categorical]
    one, other = rows[:, None], columns[None]
    smooth = np.ones((len(rows), len(columns)))
    terms = [smooth]  # the constant
    for index, factor in enumerate(space.factors):
        if factor.categorical or len(factor.levels) < 2:
            continue
        along, across = one[..., index], other[..., index]
        deviation = matern(np.abs(along - across) / LENGTH_SCALE)
        terms += [(along - 1) * (across - 1), deviation]  # the trend is 0 at the top level
        smooth = smooth * deviation
    terms += [smooth]
    if categorical:  # each once for all arms, and once for those of the same levels
        same = (one[..., categorical] == other[..., categorical]).all(axis=-1)
        terms = [each for term in terms for each in (term, same * term)]
    return np.stack(terms)


def _priors(space: ArmSpace) -> list[tuple[float, float]]:
    """Median and spread of every weight, in the order of ``VarianceComponents._terms``."""
    ordered = sum(not f.categorical and len(f.levels) > 1 for f in space.factors)
    own = any(factor.categorical for factor in space.factors)
    pairs = [(CONSTANT, OWN["constant"])]
    pairs += ordered * [(TREND, OWN["trend"]), (SMOOTH, OWN["smooth"])]
    pairs += [(REST, OWN["rest"])]
    return [prior for pair in pairs for prior in (pair if own else pair[:1])]


@lru_cache(maxsize=16)
def _draws(space: ArmSpace) -> Array:
    """Weights spread evenly over their prior, shape (draws, terms); the same at every call."""
    medians, spreads = np.array(_priors(space)).T
    evenly = qmc.Sobol(len(medians), seed=0).random(DRAWS)
    draws: Array = medians * np.exp(spreads * ndtri(np.clip(evenly, 1e-4, 1 - 1e-4)))
    draws.flags.writeable = False
    return draws
