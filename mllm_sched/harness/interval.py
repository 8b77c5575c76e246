"""How far the mean of a sampled power can be from the truth, whatever the waveform."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Bets per unit of the range: small ones for restless loads, large ones for steady loads that lie
# near the end of the range.
BETS = 0.9 * 2.0 ** np.arange(-9, 5)
PREDICTORS = 2


def mean_bounds(
    values: ArrayLike,
    low: float,
    high: float,
    widths: ArrayLike | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Bounds on the mean of a function of time from one random reading in each of its strata.

    Time is cut into strata and the function is read once in each, at a time drawn uniformly. The
    dice are ours, so the bounds assume nothing of the function but its range: a spike between two
    readings is allowed for, however rare. A load that never changes is known to about
    6 x (distance to the end of the range) / readings.

    The readings minus the means of their strata are martingale differences, whatever the means.
    The empirical Bernstein inequality bounds their sum by the squared errors of a prediction of
    each reading from those before it (Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform,
    nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49, 2021, theorem 4).
    Two predictions are tried, the reading before and the mean so far, each with several bets, and
    the tightest bound counts; the union bound pays for the choice.

    Parameters
    ----------
    values
        Readings in the order of time, shape (strata,).
    low, high
        Range that the function cannot leave.
    widths
        Lengths of the strata, shape (strata,); equal by default.
    confidence
        That the mean lies within the bounds, at least.

    Returns
    -------
    Lower and upper bound on the mean, weighted by the widths; the range itself without readings.

    Raises
    ------
    ValueError
        If a value lies outside the range, or the range is empty.

    Examples
    --------
    >>> lower, upper = mean_bounds([12.0] * 1000, low=0, high=60)
    >>> round(lower, 2), round(upper, 2)
    (11.87, 12.53)
    """
    readings = np.asarray(values, dtype=np.float64)
    if not low < high:
        raise ValueError(f"range {low} to {high}: expected low < high")
    if len(readings) == 0:
        return low, high
    if readings.min() < low or readings.max() > high:
        raise ValueError(
            f"readings from {readings.min():g} to {readings.max():g}: "
            f"outside the range {low:g} to {high:g}"
        )
    shares = np.ones(len(readings)) if widths is None else np.asarray(widths, dtype=np.float64)
    mean = float(np.average(readings, weights=shares))
    shares = shares / shares.max()
    scaled = (readings - low) / (high - low)
    below = _excess(scaled, shares, confidence) * (high - low)
    above = _excess(1 - scaled, shares, confidence) * (high - low)
    return max(low, mean - below), min(high, mean + above)


def _excess(scaled: NDArray[np.float64], shares: NDArray[np.float64], confidence: float) -> float:
    """By how much the mean of the readings may exceed the true mean; all within [0, 1].

    For a bet b and errors e of the predictions, none below -c with b c < 1:
    sum(readings - means) <= (log(1 / risk) + (-log(1 - b c) - b c) sum(e^2) / c^2) / b.
    """
    before = np.concatenate([[0.0], scaled[:-1]])
    so_far = np.concatenate([[0.0], np.cumsum(scaled)[:-1] / np.arange(1, len(scaled))])
    risk = (1 - confidence) / 2 / (len(BETS) * PREDICTORS)
    deepest = np.minimum(1.0, 0.9 / BETS)  # a large bet must predict low, lest it lose everything
    variance_cost = (-np.log1p(-BETS * deepest) - BETS * deepest) / deepest**2
    tightest = np.inf
    for predicted in (before, so_far):
        errors = shares * (scaled - np.minimum(predicted, deepest[:, None]))
        sums = (-np.log(risk) + variance_cost * (errors**2).sum(axis=1)) / BETS
        tightest = min(tightest, float(sums.min()))
    return tightest / float(shares.sum())
