"""Samples the power of rails in a thread, at random times, and integrates it.

Time is cut into strata of one period, and each is read once, at a uniform random time within it:
equal steps would beat against a periodic load, as an encoder in a loop is. Random ones are unbiased
whatever the load, and ``mean_bounds`` bounds their error.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mllm_sched.harness.reading import MeterError, PowerMeter, Reading

# Bets per unit of the range: small ones for restless loads, large ones for steady loads that lie
# near the end of the range.
BETS = 0.9 * 2.0 ** np.arange(-9, 5)
PREDICTORS = 2
CONFIDENCE = 0.95


def mean_bounds(
    values: ArrayLike, low: float, high: float, widths: ArrayLike | None = None
) -> tuple[float, float]:
    """95 % bounds on the mean of a function of time from one random reading in each stratum.

    They assume nothing of the function but its range: a spike between two readings is allowed for,
    however rare. A load that never changes is known to about 6 x (distance to the end of the range)
    / readings.

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

    Returns
    -------
    Lower and upper bound on the mean, weighted by the widths; the range itself without readings.

    Raises ValueError if a value lies outside the range, or the range is empty.

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
    below = _excess(scaled, shares) * (high - low)
    above = _excess(1 - scaled, shares) * (high - low)
    return max(low, mean - below), min(high, mean + above)


def _excess(scaled: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """By how much the mean of the readings may exceed the true mean; all within [0, 1].

    For a bet b and errors e of the predictions, none below -c with b c < 1:
    sum(readings - means) <= (log(1 / risk) + (-log(1 - b c) - b c) sum(e^2) / c^2) / b.
    """
    before = np.concatenate([[0.0], scaled[:-1]])
    so_far = np.concatenate([[0.0], np.cumsum(scaled)[:-1] / np.arange(1, len(scaled))])
    risk = (1 - CONFIDENCE) / 2 / (len(BETS) * PREDICTORS)
    deepest = np.minimum(1.0, 0.9 / BETS)  # a large bet must predict low, lest it lose everything
    variance_cost = (-np.log1p(-BETS * deepest) - BETS * deepest) / deepest**2
    tightest = np.inf
    for predicted in (before, so_far):
        errors = shares * (scaled - np.minimum(predicted, deepest[:, None]))
        sums = (-np.log(risk) + variance_cost * (errors**2).sum(axis=1)) / BETS
        tightest = min(tightest, float(sums.min()))
    return tightest / float(shares.sum())


RATE_HZ = 100.0
READINGS = 1000  # in a window at least: what a steady load needs to be known to a few percent
SLOW_READS = 3  # in a row, before the period is doubled
NAP_S = 0.05  # that stopping may take
PAUSE_S = 0.25  # without a reading: longer than any scheduler makes a thread wait


class RailFacts(Protocol):
    """What is known of some rails without reading them."""

    names: tuple[str, ...]
    counted: tuple[str, ...]  # those that make up the total; the others lie within them
    range_w: tuple[float, float]  # what the total cannot fall below or rise above


class Rails(RailFacts, Protocol):
    """Power that can be read at any time."""

    def read(self) -> Sequence[float]:
        """Watts now, one of every name; OSError or ValueError if a rail cannot be read."""

    def close(self) -> None:
        """Release what the rails hold. Closing twice does nothing."""


@dataclass(frozen=True)
class Samples:
    """Readings in the order of time."""

    time_s: NDArray[np.float64]  # ``time.monotonic()`` of each, shape (n,)
    width_s: NDArray[np.float64]  # of the stratum it stands for, shape (n,)
    power_w: NDArray[np.float64]  # watts, shape (n, rails)


class SampledMeter(PowerMeter):
    """Power of rails, read in a thread at random times and integrated.

    ``rate_hz`` readings per second are asked for; the rate is halved while the rails cannot keep
    up. ``cpu_share`` is the share of one core that sampling took in the last window.
    """

    def __init__(self, rails: Rails, source: str, rate_hz: float = RATE_HZ) -> None:
        if not 0 < rate_hz < math.inf:
            raise ValueError(f"rate_hz={rate_hz}: expected readings per second above 0")
        self.rails = rails
        self.rate_hz = rate_hz
        self.source = f"{source}, {' + '.join(rails.counted)}"
        self.min_window_s = READINGS / rate_hz
        self.cpu_share = 0.0
        self._rng = np.random.default_rng()
        self._rows: list[tuple[float, ...]] = []
        self._cpu_s = 0.0
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def _begin(self) -> float:
        self._join()
        self._rows, self._error = [], None
        self._stopping.clear()
        began_s = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="power sampler", daemon=True)
        self._thread.start()
        return began_s

    def _end(self, began: float) -> Reading:
        ended_s = time.monotonic()
        self._join()
        if self._error is not None:
            raise MeterError(str(self._error)) from self._error
        self.cpu_share = self._cpu_s / (ended_s - began)
        rows = np.array(self._rows, dtype=np.float64).reshape(-1, 2 + len(self.rails.names))
        samples = Samples(rows[:, 0], rows[:, 1], rows[:, 2:])
        return integrate(samples, began, ended_s, self.rails, self.rate_hz)

    def close(self) -> None:
        """Stop sampling and close the rails. Closing twice does nothing."""
        self._join()
        self._began = None
        self.rails.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        began = time.thread_time()
        try:
            self._read_strata()
        except (OSError, ValueError) as error:  # told by stop(), in the thread that waits for it
            self._error = error
        self._cpu_s = time.thread_time() - began

    def _read_strata(self) -> None:
        width, slow = 1 / self.rate_hz, 0
        stratum = time.monotonic()
        while True:
            wait_s = stratum + width * self._rng.random() - time.monotonic()
            if self._waited(wait_s):
                return
            before = time.monotonic()
            power = self.rails.read()
            after = time.monotonic()
            self._rows.append(((before + after) / 2, width, *power))
            slow = slow + 1 if after - before > width else 0
            if slow >= SLOW_READS:
                width, slow = 2 * width, 0
            stratum += width * max(1.0, math.floor((after - stratum) / width))

    def _waited(self, seconds: float) -> bool:
        """Wait, and say whether it was told to stop. Plain sleep costs less than an event."""
        if seconds > NAP_S:
            return self._stopping.wait(seconds)
        if seconds > 0:
            time.sleep(seconds)
        return self._stopping.is_set()


def integrate(
    samples: Samples, start_s: float, end_s: float, rails: RailFacts, asked_hz: float
) -> Reading:
    """Energy between two times: trapezoids over the readings at their own times.

    The first and last reading extend to the ends. In the bounds, time that no reading stands for
    counts with the whole range. ``start_s`` is when sampling began, ``asked_hz`` the rate that was
    asked for.
    """
    duration_s = end_s - start_s
    within = (samples.time_s >= start_s) & (samples.time_s <= end_s)
    times, widths = samples.time_s[within], samples.width_s[within]
    power = samples.power_w[within]
    low_w, high_w = rails.range_w
    if len(times) == 0:
        middle = (low_w + high_w) / 2 * duration_s
        note = "no reading within the window: its energy can be anything"
        bounds = low_w * duration_s, high_w * duration_s
        return Reading(middle, *bounds, duration_s, 0, 0.0, duration_s, notes=(note,))
    ends = np.concatenate([[start_s], times, [end_s]])
    joules = np.trapezoid(np.vstack([power[:1], power, power[-1:]]), ends, axis=0)
    counted = [rails.names.index(name) for name in rails.counted]
    total_w = power[:, counted].sum(axis=1)
    energy_j = float(joules[counted].sum())
    low_w, high_w = min(low_w, total_w.min()), max(high_w, total_w.max())
    # The last stratum may end after the window: it is left over, as is any that was missed.
    covered_s = min(duration_s, float(widths[:-1].sum()))
    mean_low_w, mean_high_w = mean_bounds(total_w[:-1], low_w, high_w, widths[:-1])
    low_j = mean_low_w * covered_s + low_w * (duration_s - covered_s)
    high_j = mean_high_w * covered_s + high_w * (duration_s - covered_s)
    unmoved_w = {
        name: float(power[0, column])
        for name, column in zip(rails.counted, counted, strict=True)
        if np.ptp(power[:, column]) == 0
    }
    rate_hz, notes = len(times) / duration_s, []
    if rate_hz < 0.9 * asked_hz:
        notes.append(f"the meter gave {rate_hz:.3g} readings a second of {asked_hz:g} asked for")
    if (low_w, high_w) != rails.range_w:
        notes.append(
            f"power from {total_w.min():.3g} to {total_w.max():.3g} W left the range "
            f"{rails.range_w[0]:g} to {rails.range_w[1]:g} W that its bounds assume"
        )
    return Reading(
        energy_j,
        min(low_j, energy_j),
        max(high_j, energy_j),
        duration_s,
        len(times),
        rate_hz,
        float(np.diff(ends).max()),
        unmoved_w,
        tuple(notes),
    )
