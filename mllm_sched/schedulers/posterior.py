"""The exact Gaussian-process posterior on a finite set, one observation at a time.

On finitely many cells a Gaussian process is one Gaussian vector. Conditioning it on an
observation is a rank-one update, so a decision costs the same at task 100 and at task 10,000.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dger


class FinitePosterior:
    """Gaussian belief over one value per cell.

    Parameters
    ----------
    mean
        Prior mean, a number or shape (cells,).
    covariance
        Prior covariance, shape (cells, cells).
    noise_variance
        Variance of one observation around its cell's value.

    Attributes
    ----------
    mean, covariance
        The posterior, updated in place by ``tell`` and ``forget``.

    Examples
    --------
    >>> belief = FinitePosterior(0.0, [[1.0, 0.5], [0.5, 1.0]], noise_variance=1.0)
    >>> belief.tell(0, 2.0)
    >>> belief.mean.round(6).tolist(), belief.covariance[1].round(6).tolist()
    ([1.0, 0.5], [0.25, 0.875])
    """

    def __init__(self, mean: ArrayLike, covariance: ArrayLike, noise_variance: float) -> None:
        self.prior_covariance = np.array(covariance, dtype=np.float64, order="C")
        cells = len(self.prior_covariance)
        if self.prior_covariance.shape != (cells, cells):
            raise ValueError(f"covariance of shape {self.prior_covariance.shape}: expected square")
        if not noise_variance > 0:
            raise ValueError(f"noise_variance={noise_variance}: expected above 0")
        self.prior_mean = np.array(np.broadcast_to(mean, cells), dtype=np.float64)
        self.noise_variance = float(noise_variance)
        self.mean = self.prior_mean.copy()
        self.covariance = self.prior_covariance.copy()  # C order, which tell relies on
        self._sd: NDArray[np.float64] | None = None

    def tell(self, cell: int, value: float) -> None:
        """Condition on one observation of a cell: m += c r / v and S -= c c' / v."""
        column = self.covariance[cell].copy()
        variance = column[cell] + self.noise_variance
        self.mean += column * ((value - self.mean[cell]) / variance)
        column /= math.sqrt(variance)
        # In place, and four times as fast as NumPy at 60 cells. BLAS wants columns first, so it is
        # given the transpose; the matrix is symmetric.
        dger(-1.0, column, column, a=self.covariance.T, overwrite_a=1)
        self._sd = None

    def forget(self, elapsed: float, rate: float) -> None:
        """Drift back towards the prior: the kernel of TV-GP-UCB, (1 - rate)^(elapsed / 2).

        Bogunovic, Scarlett and Cevher (AISTATS 2016), as the predict step of a Kalman filter.

        Parameters
        ----------
        elapsed
            Time since the last call, in the unit that ``rate`` is per.
        rate
            Within [0, 1); 0 forgets nothing.
        """
        kept = (1.0 - rate) ** elapsed
        self.mean += (np.sqrt(kept) - 1.0) * (self.mean - self.prior_mean)
        self.covariance *= kept
        self.covariance += (1.0 - kept) * self.prior_covariance
        self._sd = None

    def sd(self) -> NDArray[np.float64]:
        """Posterior standard deviation of every cell, shape (cells,)."""
        if self._sd is None:
            # Rounding can leave a well-known cell a hair below zero.
            self._sd = np.sqrt(np.maximum(self.covariance.diagonal(), 0.0))
        return self._sd
