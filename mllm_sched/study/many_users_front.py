"""What a front knows of its boards, and where it places a task: arrays over all boards at once.

The rule is that of ``mllm_sched.edge.placement``, for a thousand boards in microseconds; a test
holds the two together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mllm_sched.study.many_users import Costs, Scenario
from mllm_sched.study.many_users_boards import MODALITIES

Array = NDArray[np.float64]

WEIGHT = 0.1  # of the latest measurement in a running mean
SAME_ENERGY = 0.05  # boards whose energy differs by less than this share take turns
ANY_ENERGY = 1e9  # in its place: the board that is done soonest
FORGET_S = 10.0  # of what is said to come too late: older than that, it is tried again
NOBODY = -1  # no board can be in time


class Means:
    """Running means of latency and energy of each board, for one modality.

    A board that has not measured it yet is taken to be as fast as the median of the others and as
    frugal as the best, so that it is tried as soon as it is idle.
    """

    def __init__(self, boards: int, latency_s: float) -> None:
        self._prior_s = latency_s  # before anything was measured
        self.latency_s, self.energy_j = np.full(boards, latency_s), np.zeros(boards)
        self._known = np.zeros(boards, dtype=bool)
        self._measured_s = np.zeros(boards)  # when

    def forget(self, before_s: float) -> None:
        """Boards that were last measured before a moment are as good as new.

        Otherwise one slow run could keep all tasks from a board for ever: it would never be
        measured again.
        """
        old = self._measured_s < before_s
        self._known &= ~old
        self.latency_s[old], self.energy_j[old] = self._prior_s, 0.0

    def tell(self, board: int, latency_s: float, energy_j: float, now_s: float) -> None:
        """Take in a measurement of a board."""
        self._measured_s[board] = now_s
        weight = WEIGHT if self._known[board] else 1.0
        for mean, value in ((self.latency_s, latency_s), (self.energy_j, energy_j)):
            mean[board] += weight * (value - mean[board])
        self._known[board] = True
        if not self._known.all():
            self.latency_s[~self._known] = np.median(self.latency_s[self._known])
            self.energy_j[~self._known] = self.energy_j[self._known].min()


class Forecast:
    """Running means of what boards and the LLM took, and the work that waits at every board.

    Parameters
    ----------
    scenario
        Its boards; before anything was measured an encoding is expected to take its limit.
    costs
        What is expected behind the encoder before anything was answered.
    """

    def __init__(self, scenario: Scenario, costs: Costs) -> None:
        self.encoding = [Means(scenario.edges, scenario.limit_s) for _ in MODALITIES]
        self.waiting_s = np.zeros(scenario.edges)
        self.until_s = np.zeros(scenario.edges)  # when each encoder is expected to be free
        self._refuses = scenario.front_refuses
        self._same = SAME_ENERGY if scenario.frugal_first else ANY_ENERGY
        self._alone_s = [costs.link_s[name] + costs.llm_s[name] for name in MODALITIES]
        self._rest_s = list(self._alone_s)
        self._answered_s = [0.0] * len(MODALITIES)

    def place(self, modality: int, deadline_s: float, now_s: float) -> int:
        """The board that is to take a task; ``NOBODY`` if it would be late on all of them.

        Unless the front refuses, it then names the soonest of those that would be in time if
        nothing waited there: the board knows what of that goes before this user.
        """
        board = self._placed(modality, deadline_s, now_s)
        if board == NOBODY:
            self.encoding[modality].forget(now_s - FORGET_S)
            board = self._placed(modality, deadline_s, now_s)
        if board == NOBODY and not self._refuses:
            left_s = deadline_s - now_s - self.rest_s(modality, now_s)
            board = soonest(self._backlog_s(now_s), self.encoding[modality].latency_s, left_s)
        return board

    def _placed(self, modality: int, deadline_s: float, now_s: float) -> int:
        known = self.encoding[modality]
        left_s = deadline_s - now_s - self.rest_s(modality, now_s)
        total_s = self._backlog_s(now_s) + known.latency_s
        return placed(total_s, known.energy_j, left_s, self._same)

    def _backlog_s(self, now_s: float) -> Array:
        return self.waiting_s + np.maximum(self.until_s - now_s, 0.0)

    def encode_s(self, board: int, modality: int) -> float:
        """Expected time of encoding."""
        return float(self.encoding[modality].latency_s[board])

    def rest_s(self, modality: int, now_s: float) -> float:
        """Expected time from the encoder to the end of the answer."""
        if now_s - self._answered_s[modality] > FORGET_S:
            self._rest_s[modality] = self._alone_s[modality]
        return self._rest_s[modality]

    def busy_s(self, board: int, now_s: float) -> float:
        """Until the encoder is expected to be free."""
        return max(float(self.until_s[board]) - now_s, 0.0)

    def waits(self, board: int, cost_s: float) -> None:
        """Work was added to a queue, or, if negative, left it."""
        self.waiting_s[board] += cost_s

    def begins(self, board: int, cost_s: float, now_s: float) -> None:
        """Work left a queue for the encoder."""
        self.waiting_s[board] -= cost_s
        self.until_s[board] = now_s + cost_s

    def encoded(
        self, board: int, modality: int, latency_s: float, energy_j: float, now_s: float
    ) -> None:
        """An encoding was measured."""
        self.encoding[modality].tell(board, latency_s, energy_j, now_s)

    def answered(self, modality: int, seconds: float, now_s: float) -> None:
        """An answer took so long after its encoding, or would have if it had not been given up."""
        self._answered_s[modality] = now_s
        self._rest_s[modality] += WEIGHT * (seconds - self._rest_s[modality])


def placed(total_s: Array, energy_j: Array, left_s: float, same: float = SAME_ENERGY) -> int:
    """Of the boards that are in time: the least energy, or the soonest of those near it.

    Parameters
    ----------
    total_s, energy_j
        As predicted for each board, shape (boards,).
    left_s
        What the time may be.
    same
        Share of the least energy by which others may be above it.

    Examples
    --------
    >>> total_s, energy_j = np.array([0.9, 0.5, 0.1]), np.array([1.00, 1.04, 2.0])
    >>> placed(total_s, energy_j, left_s=2.0), placed(total_s, energy_j, left_s=0.2)
    (1, 2)
    """
    in_time = np.flatnonzero(total_s <= left_s)
    if not len(in_time):
        return NOBODY
    near = in_time[energy_j[in_time] <= energy_j[in_time].min() * (1.0 + same)]
    return int(near[total_s[near].argmin()])


def soonest(backlog_s: Array, latency_s: Array, left_s: float) -> int:
    """The soonest of the boards that would be in time if nothing waited there; or ``NOBODY``.

    Examples
    --------
    >>> soonest(np.array([5.0, 3.0, 0.0]), np.array([0.1, 0.1, 9.0]), left_s=1.0)
    1
    """
    hope = latency_s <= left_s
    return int(np.where(hope, backlog_s + latency_s, np.inf).argmin()) if hope.any() else NOBODY
