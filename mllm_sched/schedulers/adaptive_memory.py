"""What the adaptive rule knows: a belief per quantity, and when to drop one.

Energy is modelled as power, since E = P T: the log of energy is the sum of two beliefs. What
contradicts a well-known arm is evidence of change; then all arms of the same *kind*, that is of the
same combination of categorical levels, are forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.base import Indices
from mllm_sched.schedulers.change import ChangeDetector, clipped
from mllm_sched.schedulers.incomplete import Values
from mllm_sched.schedulers.state import Stateful
from mllm_sched.schedulers.variance_components import VarianceComponents

Array = NDArray[np.float64]

NONE = np.zeros(0, dtype=np.int64)
KNOWN = 3  # measurements of an arm from which on another may contradict them
SUSPECT = 2.0  # standard deviations beyond a limit, from which an arm is no longer trusted


class AdaptiveMemory(Stateful):
    """Beliefs over all cells.

    Parameters
    ----------
    cells
        Contexts and arms.
    means
        Prior mean of the log of every quantity, until the first measurement takes its place.
    objective
        Of these quantities.
    by_power
        Whether the objective is an energy that is modelled as power times latency.
    learn_kernel, notice_change
        See ``AdaptiveSafeGP``.

    Attributes
    ----------
    beliefs
        By quantity.
    trials
        Runs of each cell that were told, failed ones among them, shape (cells,).
    kinds
        A number for each combination of categorical levels, shape (cells,).
    changes
        Noticed since this object was made.
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
        self.trials = np.zeros(len(cells))
        self._detector = ChangeDetector(means, len(cells))
        self.changes = 0

    def learn(self) -> None:
        """Learn the kernels anew where enough was told."""
        if self.learn_kernel:
            for belief in self.beliefs.values():
                belief.learn()

    def moments(self, name: str, cells: Indices, running: Indices = NONE) -> tuple[Array, Array]:
        """Mean and variance of the log of a quantity, once what is running will be told."""
        belief = self.beliefs[name]
        mean, variance = belief.mean[cells], belief.sd_after(running)[cells] ** 2
        if name == self.objective and self.by_power:
            latency = self.beliefs["latency_s"]
            return mean + latency.mean[cells], variance + latency.sd_after(running)[cells] ** 2
        return mean, variance

    def moments_of(self, name: str, cell: int) -> tuple[float, float]:
        """Mean and variance of the log of a quantity of one cell."""
        names = [name, "latency_s"] if name == self.objective and self.by_power else [name]
        beliefs = [self.beliefs[name] for name in names]
        mean = sum(float(belief.mean[cell]) for belief in beliefs)
        return mean, sum(float(belief.sd()[cell]) ** 2 for belief in beliefs)

    def feasible(self, cells: Indices, log_limits: Values) -> tuple[Array, NDArray[np.bool_]]:
        """Probability of being within every limit, and which arms are likely beyond one."""
        probability, suspect = np.ones(len(cells)), np.zeros(len(cells), dtype=bool)
        for name, limit in log_limits.items():
            mean, variance = self.moments(name, cells)
            z = (limit - mean) / np.maximum(np.sqrt(variance), 1e-9)
            probability *= ndtr(z)
            suspect |= z < -SUSPECT
        return probability, suspect

    def learned(self, cells: Indices, running: Indices) -> Array:
        """Least share of variance that one trial would take away, shape (cells,)."""
        least = np.ones(len(cells))
        for belief in self.beliefs.values():
            variance = belief.sd_after(running)[cells] ** 2
            least = np.minimum(least, variance / (variance + belief.noise_variance))
        return least

    def tell(self, cell: int, values: Values) -> None:
        """Take in what was measured."""
        self._take_in(cell, self._logs(values))

    def tell_above(self, cell: int, values: Values, above: Values) -> None:
        """Take in a run that was stopped: what is known, and what to expect beyond the bounds."""
        logs = self._logs(values)
        for name in sorted(above, key=lambda name: name == self.objective):  # latency first
            bound = math.log(above[name])
            if name == self.objective and self.by_power:
                bound -= logs.get("latency_s", float(self.beliefs["latency_s"].mean[cell]))
            logs[name] = self.beliefs[name].expected_above(cell, bound)
        self._take_in(cell, logs, measured=False)

    def tell_failed(self, cell: int, values: Values) -> None:
        """Take in what a failed run counts as."""
        self._take_in(cell, self._logs(values), measured=False)

    def recall(self, cell: int, values: Values, scatter: float, *, measured: bool = True) -> None:
        """Take in what another table says, which is no change, whatever it says."""
        self.trials[cell] += scatter == 0.0
        for name, value in self._logs(values).items():
            if scatter:
                self.beliefs[name].tell_elsewhere(cell, value, scatter, measured=measured)
            else:
                self.beliefs[name].tell(cell, value, measured=measured)

    def forget(self, kind: int) -> None:
        """Drop what was measured of arms of a kind."""
        alike = self.kinds == kind
        self._detector.reset(alike)
        self.trials[alike] = 0.0
        for belief in self.beliefs.values():
            belief.forget(alike)

    def _logs(self, values: Values) -> Values:
        """Logs, energy as power if it is modelled so; without a latency it says nothing."""
        logs = {name: math.log(value) for name, value in values.items()}
        if self.by_power and self.objective in logs:
            energy = logs.pop(self.objective)
            if "latency_s" in logs:
                logs[self.objective] = energy - logs["latency_s"]
        return logs

    def _take_in(self, cell: int, logs: Values, *, measured: bool = True) -> None:
        """Tell the beliefs, unless it contradicts them: then it is a change, or an outlier."""
        if self.notice_change and self.trials[cell] >= KNOWN:
            surprises = {name: self.beliefs[name].surprise(cell, logs[name]) for name in logs}
            changed = {name: self._detector.changed(name, cell, surprises[name]) for name in logs}
            if any(changed.values()):
                self.changes += 1
                self.forget(int(self.kinds[cell]))
            else:  # a single outlier moves nothing far
                for name, surprise in surprises.items():
                    logs[name] -= (surprise - clipped(surprise)) * self.beliefs[name].scatter(cell)
        self.trials[cell] += 1.0
        for name, value in logs.items():
            self.beliefs[name].tell(cell, value, measured=measured)


def _kinds(space: ArmSpace) -> Indices:
    """A number for each combination of categorical levels, shape (cells,)."""
    names: Sequence[int] = [i for i, factor in enumerate(space.factors) if factor.categorical]
    _, kinds = np.unique(space.features()[:, names], axis=0, return_inverse=True)
    return kinds.reshape(-1).astype(np.int64)
