"""How well arms that were never run can be predicted from a few that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
from sklearn.base import RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mllm_sched.arms import ArmSpace

GRID = np.log(np.logspace(-2, 2, 13))  # of the Gaussian process: prior variance, length-scale


def one_hot_features(space: ArmSpace) -> np.ndarray:
    """Arm features with one column per level of a categorical factor, shape (arms, columns)."""
    columns = []
    for values, factor in zip(space.features().T, space.factors, strict=True):
        if factor.categorical:
            columns += [values == code for code in range(len(factor.levels))]
        else:
            columns.append(values)
    return np.column_stack(columns).astype(np.float64)


def predictors(seed: int = 0) -> dict[str, RegressorMixin]:
    """Smooth and unsmooth regressors of scikit-learn, by name."""
    kernel = ConstantKernel(1.0) * Matern(1.0, nu=2.5)
    return {
        "Gaussian process": GaussianProcessRegressor(
            kernel, alpha=1e-4, optimizer=_likeliest, normalize_y=True
        ),
        "Quadratic ridge": make_pipeline(
            PolynomialFeatures(2), StandardScaler(), RidgeCV(np.logspace(-4, 2, 13))
        ),
        "Random forest": RandomForestRegressor(100, random_state=seed),
    }


def _likeliest(
    loss: Callable[..., float], start: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, float]:
    """Hyperparameters on a grid, for scikit-learn.

    A search along gradients stops where rounding leads it, so its end differs in the sixth digit
    between processors.
    """
    points = [np.array(point) for point in product(GRID, GRID)]
    losses = [loss(point, eval_gradient=False) for point in points]
    best = int(np.argmin(losses))
    return points[best], losses[best]


def prediction_error(
    space: ArmSpace, values: np.ndarray, sizes: Sequence[int], repeats: int, seed: int = 0
) -> pd.DataFrame:
    """Error on the arms left out, over how many arms were profiled.

    Parameters
    ----------
    space
        The arms.
    values
        A quantity above 0 on every arm, shape (arms,). It is fitted in logs.
    sizes
        How many arms, drawn at random, are profiled.
    repeats
        Draws per size.
    seed
        Of the draws and the regressors.

    Returns
    -------
    One row per predictor, size and draw; ``error`` is the median over the arms left out of
    ``|predicted / true - 1|``.
    """
    rng, features, logs = np.random.default_rng(seed), one_hot_features(space), np.log(values)
    rows = []
    for size in sizes:
        for repeat in range(repeats):
            order = rng.permutation(len(space))
            seen, unseen = order[:size], order[size:]
            for name, model in predictors(seed).items():
                predicted = model.fit(features[seen], logs[seen]).predict(features[unseen])
                error = np.median(np.abs(np.exp(predicted - logs[unseen]) - 1))
                rows.append((name, size, repeat, float(error)))
    return pd.DataFrame(rows, columns=["predictor", "arms_profiled", "repeat", "error"])
