"""Adaptive safe GP: a budget of risk, a kernel learned online, and detection of change.

Beside safe GP-UCB (notebook ``08_ablations`` shows what each part brings):

- An arm that is not certified may be tried, if it promises to save more than it costs, and as long
  as a budget of expected violations lasts.
- The kernel is learned from the first few measurements (``variance_components.py``), for the logs
  of latency and of power; energy is their sum, since E = P T.
- Change is detected by cumulative sums of clipped deviations per cell (Page, Continuous inspection
  schemes, Biometrika 1954). The measurements of all arms of the same *kind*, that is of the same
  combination of categorical levels, are then dropped.

The value of trying an arm is expected improvement times the probability that the arm is feasible
(Gardner et al., ICML 2014; Gelbart et al., arXiv 1403.5607), for as many tasks as a discovery is
worth and as far as one trial shows it, less what the trial costs.

``Scheduler.ask`` calls ``_choose``: what has rested is forgotten (``_try_again``), kernels are
learned, and beliefs are read once (``_look``). A trusted arm that never ran comes first. Then, of
the certified arms (of the trusted ones, if none is certified; else ``_fallback``), the one of least
expected energy is kept, unless ``_best_trial`` finds an arm that is worth more than it, certified
or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import (
    NONE,
    Array,
    Decision,
    Indices,
    LogBounds,
    Mask,
    Scheduler,
    Values,
    expect,
    from_logs,
    greatest,
    least,
)
from mllm_sched.schedulers.state import Stateful
from mllm_sched.schedulers.variance_components import VarianceComponents

MOST_RISK = 0.4  # an arm that violates a limit with more probability is never tried
RISK_OFFSET = 0.05  # added to a trial's risk, by which its net worth is divided
PRICE = 5.0  # of a violation, in units of the energy of the arm that is kept otherwise
WORTH = 0.3  # share of the horizon for which a discovery counts
HOPE = 0.001  # an arm that is within the limits with less probability is not expected to be
UP_FRONT = 0.8  # of the budget of the first horizon, which may be spent at once
REST = 100  # tasks after which a kind that was given up is tried again, at first

# Detection of change, in standard deviations but for the first.
KNOWN = 3  # measurements of an arm from which on another may contradict them
SUSPECT = 2.0  # above a limit, from which an arm is no longer trusted
CLIP = 4.0  # of every deviation, so that one outlier proves nothing
SLACK = 0.75  # of every deviation: changes smaller than twice that are found late or never
ALARM = 6.5  # two of the largest deviations in a row


Moments = dict[str, tuple[Array, Array]]  # of the log of each quantity: mean and variance of cells


class View(NamedTuple):
    """What is believed of some cells; arrays of shape (cells,)."""

    cells: Indices
    moments: Moments
    p_feasible: Array  # probability of being within every limit
    not_refuted: Mask  # mean at most two standard deviations above every limit


class AdaptiveSafeGP(Scheduler):
    """Least expected energy among the certified arms, or a trial that pays.

    Parameters
    ----------
    violation_rate
        Expected share of violations by trials, over the first ``horizon`` tasks; from then on a
        fifth of it. What the certified arm risks that runs otherwise, at most 1 - ``certainty`` a
        task, is charged too, but never stops it; seed arms are trusted.
    horizon
        Tasks over which finding a better arm should pay off.
    certainty
        Probability of being within every limit from which an arm is certified.
    learn_kernel, model_power, notice_change
        Parts that can be switched off for an ablation: learned weights of the kernel, power
        modelled instead of energy, forgetting what changed.
    **common
        See ``Scheduler``. At least one seed arm is needed.

    Notes
    -----
    The budget counts probabilities of the model. Nothing is random.

    No arm is tried of a kind of which no arm is trusted or was tried: give a seed arm for every
    kind that may be used. A kind whose trusted arms all violated a limit, or failed, is forgotten
    after a rest of 100 tasks, and tried again; each further rest is twice as long.

    When no arm is certified or trusted, the one most likely to be within the limits runs; when none
    can be, the one that violates them least.
    """

    name: ClassVar[str] = "adaptive-safe-gp"
    STATE: ClassVar[tuple[str, ...]] = ("memory", "risked", "_asked", "_rested_since", "_rest")

    def __init__(
        self,
        space: ArmSpace,
        *,
        violation_rate: float = 0.005,
        horizon: int = 500,
        certainty: float = 0.995,
        learn_kernel: bool = True,
        model_power: bool = True,
        notice_change: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(space, **common)
        self._trusted = self._trusted_cells()
        expect(0 <= violation_rate < 1, f"violation_rate={violation_rate}", "within [0, 1)")
        expect(horizon >= 1, f"horizon={horizon}", "1 or more")
        expect(0.5 < certainty < 1, f"certainty={certainty}", "within (0.5, 1)")
        self.violation_rate, self.horizon, self.certainty = violation_rate, horizon, certainty
        self.width = float(ndtri(certainty))  # of the bounds of a decision
        self.learn_kernel, self.model_power = learn_kernel, model_power
        self.notice_change = notice_change
        by_power = model_power and self.objective == "energy_j" and "latency_s" in self.limits
        means = {name: self._log_limits.get(name, 0.0) for name in self.quantities}
        if by_power and self.objective in self.limits:
            means[self.objective] -= means["latency_s"]
        self.memory = AdaptiveMemory(
            self.joint,
            means,
            self.objective,
            by_power=by_power,
            learn_kernel=learn_kernel,
            notice_change=notice_change,
        )
        self.risked = 0.0  # expected violations so far
        self._asked = 0
        kinds = self.memory.kinds.max() + 1
        self._rested_since = np.zeros(kinds)  # tasks asked when each kind was last run or judged
        self._rest = np.full(kinds, np.inf)  # how long it waits if it is given up
        self._rest[self.memory.kinds[self._trusted]] = REST

    @property
    def beliefs(self) -> dict[str, VarianceComponents]:
        """Of the log of each quantity; of power instead of energy, if that is modelled."""
        return self.memory.beliefs

    @property
    def changes(self) -> int:
        """See ``Scheduler``."""
        return self.memory.changes

    def _choose(self, cells: Indices, now: float) -> Decision:
        self._try_again(cells)
        self.memory.learn()
        view, running = self._look(cells), self._running()
        trusted = self._trusted[cells] & view.not_refuted
        untried = trusted & (self.memory.trials[cells] == 0)
        if len(running):
            untried &= ~np.isin(cells, running)
        if np.count_nonzero(untried):
            reason = "trusted seed, not tried yet"
            return self._take(view, int(untried.argmax()), reason, charged=False)
        safe = (view.p_feasible >= self.certainty).nonzero()[0]
        if not len(safe):
            safe = trusted.nonzero()[0]
        if not len(safe):
            return self._fallback(view)
        later = self.memory.moments(cells, running) if len(running) else view.moments
        mean, variance = later[self.objective]
        kept = int(safe[least(mean[safe])])
        trial = self._best_trial(view, kept, mean, variance, running)
        if trial is not None:
            return self._take(view, trial, "worth a trial")
        return self._take(view, kept, "least energy among the safe arms")

    def _look(self, cells: Indices) -> View:
        moments = self.memory.moments(cells)
        scores = [
            (limit - moments[name][0]) / np.maximum(np.sqrt(moments[name][1]), 1e-9)
            for name, limit in self._log_limits.items()
        ]
        feasible = reduce(np.multiply, map(ndtr, scores))
        return View(cells, moments, feasible, reduce(np.minimum, scores) >= -SUSPECT)

    def _try_again(self, cells: Indices) -> None:
        """Forget a kind whose trusted arms in this context were given up, once it rested."""
        due = self._rested_since + self._rest
        if self._asked < due.min():
            return
        here = np.arange(self.cells) // len(self.space) == cells[0] // len(self.space)
        for kind in np.flatnonzero(due <= self._asked):
            seeds = np.flatnonzero(self._trusted & here & (self.memory.kinds == kind))
            if not len(seeds):
                continue
            self._rested_since[kind] = self._asked
            if not self._look(seeds).not_refuted.any():
                self.memory.forget(int(kind))
                self._rest[kind] *= 2.0

    def _fallback(self, view: View) -> Decision:
        """Where no arm is safe; the budget is not charged."""
        known = self._known(view.cells)
        known = known if known.any() else ~known
        best = greatest(np.where(known, view.p_feasible, -1.0))
        if view.p_feasible[best] >= HOPE:
            reason = "no arm is certified: most likely within the limits"
            return self._take(view, best, reason, charged=False)
        excess = [view.moments[name][0] - limit for name, limit in self._log_limits.items()]
        nearest = least(np.where(known, reduce(np.maximum, excess), np.inf))
        reason = "no arm can meet the limits: least beyond them"
        return self._take(view, nearest, reason, charged=False, infeasible=True)

    def _known(self, cells: Indices) -> Mask:
        """Whether any arm of the same kind is trusted or was tried."""
        found = np.bincount(self.memory.kinds, self._trusted + self.memory.trials)
        known: Mask = (found > 0)[self.memory.kinds[cells]]
        return known

    def _on_trial(self, cells: Indices, running: Indices) -> Mask:
        """Whether an uncertain arm of the same kind is still running: its result comes first."""
        feasible = self._look(running).p_feasible
        uncertain = running[(feasible < self.certainty) & ~self._trusted[running]]
        return np.isin(self.memory.kinds[cells], self.memory.kinds[uncertain])

    def _take(
        self,
        view: View,
        position: int,
        reason: str,
        *,
        charged: bool = True,
        infeasible: bool = False,
    ) -> Decision:
        cell, probability = int(view.cells[position]), float(view.p_feasible[position])
        self._asked += 1
        self._rested_since[self.memory.kinds[cell]] = self._asked
        if charged and not self._trusted[cell]:
            self.risked += 1.0 - probability
            self._charge(1.0 - probability)
        bounds = {}
        for name, (mean, variance) in view.moments.items():
            middle, spread = float(mean[position]), self.width * math.sqrt(variance[position])
            bounds[name] = from_logs(middle - spread, middle + spread)
        return self._decision(
            cell,
            reason,
            certified=probability >= self.certainty,
            p_feasible=probability,
            bounds=bounds,
            safe_arms=int(np.count_nonzero(view.p_feasible >= self.certainty)),
            infeasible=infeasible,
        )

    def _believed(self, cells: Indices) -> LogBounds:
        bounds = {}
        for name, (mean, variance) in self.memory.moments(cells).items():
            spread = self.width * np.sqrt(variance)
            bounds[name] = (mean - spread, mean + spread)
        return bounds

    def _certified_cells(self) -> Mask:
        return self._look(np.arange(self.cells)).p_feasible >= self.certainty

    def budget(self) -> float:
        """Expected violations that may still be risked."""
        share = UP_FRONT * self.horizon + (1.0 - UP_FRONT) * self._asked
        return self.violation_rate * share - self.risked

    def _best_trial(
        self, view: View, kept: int, mean: Array, variance: Array, running: Indices
    ) -> int | None:
        """Position of the arm whose trial is worth most, in units of the kept arm's energy."""
        risk = 1.0 - view.p_feasible
        allowed = risk <= max(1.0 - self.certainty, min(MOST_RISK, self.budget()))
        allowed &= self._known(view.cells)
        if len(running):
            allowed &= ~self._on_trial(view.cells, running)
        allowed[kept] = False
        trials = allowed.nonzero()[0]
        if not len(trials):
            return None
        gain, risk = mean[kept] - mean[trials], risk[trials]
        spread = np.maximum(np.sqrt(variance[trials]), 1e-9)
        score = gain / spread
        improvement = gain * ndtr(score) + spread * np.exp(-0.5 * score**2) / math.sqrt(2 * math.pi)
        value = WORTH * self.horizon * view.p_feasible[trials] * improvement
        # The mean of a log-normal: an uncertain arm is expected to be more expensive.
        cost = np.maximum(np.expm1(np.minimum(spread**2 / 2 - gain, 50.0)), 0.0) + PRICE * risk
        if not np.count_nonzero(value > cost):  # mostly so, once all is known
            return None
        net = value * self.memory.learned(view.cells[trials], running) - cost
        worthy = (net > 0).nonzero()[0]
        if not len(worthy):
            return None
        # Where a little of the budget buys most: it is better kept until more is known.
        return int(trials[worthy[greatest(net[worthy] / (risk[worthy] + RISK_OFFSET))]])

    def _learn(self, cell: int, values: Values, now: float) -> None:
        self.memory.tell(cell, values)

    def _censor(self, cell: int, values: Values, above: Values, now: float) -> None:
        self.memory.tell_above(cell, values, above)

    def _fail(self, cell: int, now: float) -> None:
        """A failed run says nothing of the objective."""
        self.memory.tell(cell, self._twice_the_limits(), measured=False)

    def _recall(self, cell: int, values: Values, scatter: float) -> None:
        self.memory.recall(cell, values or self._twice_the_limits(), scatter, measured=bool(values))

    def _refund(self, amount: float) -> None:
        self.risked -= amount


class AdaptiveMemory(Stateful):
    """Beliefs of ``AdaptiveSafeGP`` over all cells, and the detection of change.

    ``means`` are prior means of the log of every quantity. ``by_power``: the objective is an energy
    and modelled as power times latency.
    """

    STATE: ClassVar[tuple[str, ...]] = ("beliefs", "trials", "_detector")

    def __init__(
        self,
        cells: ArmSpace,
        means: Mapping[str, float],
        objective: str,
        *,
        by_power: bool,
        learn_kernel: bool,
        notice_change: bool,
    ) -> None:
        self.beliefs = {name: VarianceComponents(cells, mean) for name, mean in means.items()}
        self.objective, self.by_power = objective, by_power
        self.learn_kernel, self.notice_change = learn_kernel, notice_change
        self.kinds = _kinds(cells)
        self.trials = np.zeros(len(cells))  # observed runs, failed ones included
        self._detector = ChangeDetector(means, len(cells))
        self.changes = 0

    def learn(self) -> None:
        """Learn the kernels anew where enough was observed."""
        if self.learn_kernel:
            for belief in self.beliefs.values():
                belief.learn()

    def moments(self, cells: Indices, running: Indices = NONE) -> Moments:
        """Mean and variance of the log of every quantity, once what is running was observed."""
        found = {
            name: (belief.mean[cells], belief.sd_after(running)[cells] ** 2)
            for name, belief in self.beliefs.items()
        }
        if self.by_power:
            (power, variance), (latency, more) = found[self.objective], found["latency_s"]
            found[self.objective] = (power + latency, variance + more)
        return found

    def learned(self, cells: Indices, running: Indices) -> Array:
        """Least share of variance that one trial would take away, shape (cells,)."""
        shares = []
        for belief in self.beliefs.values():
            variance = belief.sd_after(running)[cells] ** 2
            shares.append(variance / (variance + belief.noise_variance))
        return reduce(np.minimum, shares)

    def tell(self, cell: int, values: Values, *, measured: bool = True) -> None:
        """Observe a run, or what a failed one counts as."""
        self._take_in(cell, self._logs(values), measured=measured)

    def tell_above(self, cell: int, values: Values, above: Values) -> None:
        """Observe a stopped run: what was measured, and what to expect above the bounds."""
        logs = self._logs(values)
        for name in sorted(above, key=lambda name: name == self.objective):  # latency first
            bound = math.log(above[name])
            if name == self.objective and self.by_power:
                bound -= logs.get("latency_s", float(self.beliefs["latency_s"].mean[cell]))
            logs[name] = self.beliefs[name].expected_above(cell, bound)
        self._take_in(cell, logs, measured=False)

    def recall(self, cell: int, values: Values, scatter: float, *, measured: bool = True) -> None:
        """Observe a row of another table, which is never a change."""
        self.trials[cell] += scatter == 0.0
        for name, value in self._logs(values).items():
            if scatter:
                self.beliefs[name].tell_elsewhere(cell, value, scatter, measured=measured)
            else:
                self.beliefs[name].tell(cell, value, measured=measured)

    def forget(self, kind: int) -> None:
        """Drop the measurements of a kind."""
        alike = self.kinds == kind
        self._detector.reset(alike)
        self.trials[alike] = 0.0
        for belief in self.beliefs.values():
            belief.forget(alike)

    def _logs(self, values: Values) -> Values:
        """Logs, energy as power if it is modelled so; dropped if there is no latency."""
        logs = {name: math.log(value) for name, value in values.items()}
        if self.by_power and self.objective in logs:
            energy = logs.pop(self.objective)
            if "latency_s" in logs:
                logs[self.objective] = energy - logs["latency_s"]
        return logs

    def _take_in(self, cell: int, logs: Values, *, measured: bool) -> None:
        """Update the beliefs; what contradicts them is a change, or an outlier to be clipped."""
        if self.notice_change and self.trials[cell] >= KNOWN:
            changed, excess = False, {}
            for name, value in logs.items():
                scatter = self.beliefs[name].scatter(cell)
                surprise = (value - float(self.beliefs[name].mean[cell])) / scatter
                changed |= self._detector.changed(name, cell, surprise)
                excess[name] = (surprise - clipped(surprise)) * scatter
            if changed:
                self.changes += 1
                self.forget(int(self.kinds[cell]))
            else:  # a single outlier moves nothing far
                logs = {name: value - excess[name] for name, value in logs.items()}
        self.trials[cell] += 1.0
        for name, value in logs.items():
            self.beliefs[name].tell(cell, value, measured=measured)


def _kinds(space: ArmSpace) -> Indices:
    """A number for each combination of categorical levels, shape (cells,)."""
    names: Sequence[int] = [i for i, factor in enumerate(space.factors) if factor.categorical]
    _, kinds = np.unique(space.features()[:, names], axis=0, return_inverse=True)
    return kinds.reshape(-1).astype(np.int64)


class ChangeDetector(Stateful):
    """Evidence that quantities became larger, or smaller, on each cell.

    Examples
    --------
    >>> detector = ChangeDetector(["latency_s"], cells=2)
    >>> [detector.changed("latency_s", 0, deviation) for deviation in (9.0, 9.0)]
    [False, True]
    """

    STATE: ClassVar[tuple[str, ...]] = ("_sums",)

    def __init__(self, quantities: Iterable[str], cells: int) -> None:
        self._sums = {name: np.zeros((2, cells)) for name in quantities}

    def changed(self, quantity: str, cell: int, deviation: float) -> bool:
        """Add a deviation, in standard deviations; whether there is enough evidence now."""
        sums, step = self._sums[quantity], clipped(deviation)
        rise = max(0.0, float(sums[0, cell]) + step - SLACK)
        fall = max(0.0, float(sums[1, cell]) - step - SLACK)
        sums[0, cell], sums[1, cell] = rise, fall
        return max(rise, fall) >= ALARM

    def reset(self, cells: Mask) -> None:
        """Begin anew on some cells."""
        for sums in self._sums.values():
            sums[:, cells] = 0.0


def clipped(deviation: float) -> float:
    """A deviation within +/- ``CLIP``."""
    return min(max(deviation, -CLIP), CLIP)
