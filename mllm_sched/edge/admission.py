"""Whether a task can be answered in time, from how long such tasks took so far.

Before the first is measured, the scheduler's predictions take that place.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from mllm_sched.edge.refusals import Refusal
from mllm_sched.schedulers import Scheduler

UNKNOWN_S = 0.1  # of encoding, for a modality of which nothing is known
TOO_SHORT_S = 0.1  # a predicted wait that a single call under way may double
FORGOTTEN_S = 30.0  # without a wait, after which waits are taken as predicted again
PROBE_S = 5.0  # without a measurement after a refusal, until one task is let in all the same
SURE = 4.0  # upper to lower bound of a latency; a wider belief says nothing yet
KINDS = 256  # that have a mean of their own, those seen last
MEMORY = 16  # measurements that a mean reaches back over
LEAP = 4.0  # one measurement counts for no more than that many times the mean
SPREADS = 2.0  # mean deviations to either side that are still to be expected


class Ewma:
    """Exponentially weighted mean and mean deviation, as of round trips in RFC 6298.

    A measurement far above the mean counts for ``LEAP`` times the mean; one far below starts the
    mean anew, since what is taken for slow is not used and cannot show many. The mean is
    ``expected`` until something is measured, NaN if nothing is known.
    """

    def __init__(self, expected: float = math.nan) -> None:
        self.mean, self.deviation, self.count = expected, 0.0, 0

    def add(self, value: float) -> None:
        """Add a measurement; one that is no number above 0 is ignored."""
        if not 0 < value < math.inf:
            return
        if not self.count or value * LEAP < self.mean:
            self.mean, self.deviation, self.count = value, 0.0, 1
            return
        self.count = min(self.count + 1, MEMORY)
        off = min(value, LEAP * self.mean) - self.mean
        self.mean += off / self.count
        self.deviation += (abs(off) - self.deviation) / self.count

    @property
    def known(self) -> bool:
        """Whether it was measured or expected."""
        return not math.isnan(self.mean)

    @property
    def least(self) -> float:
        """Lower bound; 0 before it was measured."""
        return max(0.0, self.mean - self.spread) if self.count else 0.0

    @property
    def spread(self) -> float:
        """Half-width of the range to be expected."""
        return SPREADS * self.deviation


class EwmaByKind(OrderedDict[Hashable, Ewma]):
    """One for each of the ``KINDS`` seen last."""

    def add(self, kind: Hashable, value: float) -> None:
        """Add a measurement of a kind."""
        self.setdefault(kind, Ewma()).add(value)
        self.move_to_end(kind)
        if len(self) > KINDS:
            self.popitem(last=False)

    def mean(self, kind: Hashable, default: float) -> float:
        """Of a kind, or the default."""
        ewma = self.get(kind)
        return ewma.mean if ewma is not None and ewma.known else default


class LetIn(Enum):
    """Why a task was let in, which decides when it is given up."""

    FITS = "it is expected to be in time"
    CHANCE = "nothing goes before it, and with luck it is in time"
    PROBE = "nothing was measured for long; it shows how long tasks take now"


@dataclass(frozen=True)
class ExpectedTimes:
    """What one item of a modality is expected to take; NaN if unknown."""

    modality: str
    latency_s: float
    energy_j: float


class Admission:
    """Predicts how long tasks take, and refuses those that cannot be in time.

    Nothing is refused before something was measured. When nothing was measured for ``PROBE_S``
    after a refusal, one task is let in all the same: else a few slow runs would end all service.

    Examples
    --------
    >>> admission = Admission()
    >>> admission.encoded("image", 0.5)
    >>> admission.answered(1.0)
    >>> admission.check(0.5, ends_s=3.0, ahead_s=1.0, now_s=0.0).name
    'FITS'
    >>> admission.check(0.5, ends_s=3.0, ahead_s=2.0, now_s=0.0)
    Traceback (most recent call last):
    mllm_sched.edge.refusals.Refusal: too-late: it would be answered in 3.5 s, and 3 s are left; \
send less at a time or with a later deadline; ask again in 0.5 s
    """

    def __init__(self) -> None:
        self._latency: dict[str, Ewma] = {}
        self._energy: dict[str, Ewma] = {}
        self._of_kind = EwmaByKind()
        self._batch = EwmaByKind()  # items of a kind that share a call: each waits for all of it
        self._answer = Ewma()
        self._ratio = Ewma(1.0)  # of seconds that encoding took to those predicted
        self._wait = _as_predicted()  # of seconds that waiting took to those predicted
        self._waited_s = 0.0  # when that was measured last
        self._silent_since_s: float | None = None  # first refusal after the last measurement

    @property
    def answer_s(self) -> float:
        """Mean seconds from features to the end of an answer; 0 before there was one."""
        return self._answer.mean if self._answer.known else 0.0

    def encode_s(self, modality: str, kind: Hashable = None) -> float:
        """Predicted seconds of encoding of an item: the mean of its kind, else of its modality."""
        known = self._latency.get(modality)
        mean_s = known.mean if known is not None and known.known else UNKNOWN_S
        return self._of_kind.mean((modality, kind), mean_s)

    def predictions(self) -> list[ExpectedTimes]:
        """For each modality of which something is known, by name."""
        return [
            ExpectedTimes(modality, latency.mean, self._energy[modality].mean)
            for modality, latency in sorted(self._latency.items())
        ]

    def expect(self, modality: str, latency_s: float, energy_j: float = math.nan) -> None:
        """A scheduler's prediction for a modality, used until it is measured."""
        if not (latency := self._latency.get(modality)) or not latency.count:
            self._latency[modality] = Ewma(latency_s)
            self._energy[modality] = Ewma(energy_j)

    def encoded(
        self,
        modality: str,
        latency_s: float,
        energy_j: float = math.nan,
        kind: Hashable = None,
        batch: int = 1,
    ) -> None:
        """One item was encoded, in a call of ``batch`` items; NaN is an unknown energy."""
        ratio = latency_s / self.encode_s(modality, kind) if modality in self._latency else 1.0
        self._ratio.add(min(max(ratio, 1 / LEAP), LEAP))
        self._latency.setdefault(modality, Ewma()).add(latency_s)
        self._energy.setdefault(modality, Ewma()).add(energy_j)
        if kind is not None:
            self._of_kind.add((modality, kind), latency_s)
            self._batch.add(kind, batch)
        self._silent_since_s = None

    def answered(self, took_s: float) -> None:
        """The LLM's answer took so many seconds, from the features to its end."""
        self._answer.add(took_s)
        self._silent_since_s = None

    def waited(
        self, predicted_s: float, took_s: float, now_s: float, *, in_vain: bool = False
    ) -> None:
        """A task waited ``took_s`` for its turn.

        That is longer than predicted where others come who go first. Shorter waits are luck: a call
        was nearly done. A task that gave up (``in_vain``) would have waited longer still, so its
        wait is only a lower bound.
        """
        if predicted_s < TOO_SHORT_S or (in_vain and took_s <= self.wait_s(predicted_s)):
            return
        self._wait.add(min(max(took_s / predicted_s, 1.0), LEAP))
        self._waited_s = now_s

    def wait_s(self, ahead_s: float) -> float:
        """Seconds until what goes before is done, corrected by how long such waits took."""
        return ahead_s * self._wait.mean

    def service_s(
        self, encode_s: float, kind: Hashable = None, let_in: LetIn = LetIn.FITS
    ) -> float:
        """Predicted seconds from the start of its encoding to the end of its answer.

        For ``CHANCE`` it is the least that it may take, for ``PROBE`` 0: that is never given up.
        """
        if let_in is LetIn.PROBE:
            return 0.0
        if let_in is LetIn.CHANCE:
            return self._least_s(encode_s)
        return self._shared_s(encode_s, kind) + self.answer_s

    def check_first(self, ahead_s: float, now_s: float, ends_s: float) -> None:
        """Before an upload: refuse what would be late even with one item of the quickest modality.

        ``ahead_s`` is what would go before this user's next task, running calls included; the
        ``Refusal`` is ``cannot`` or ``too-late``.
        """
        self._forget(now_s)
        encode_s = min((one.least for one in self._latency.values()), default=0.0)
        quick_s = encode_s + self._answer.least
        refusal = self._judged(quick_s, self.wait_s(ahead_s), quick_s, ends_s - now_s)
        if refusal is not None and not self._is_silent(now_s, ends_s):
            raise refusal

    def check(
        self, encode_s: float, ends_s: float, ahead_s: float, now_s: float, kind: Hashable = None
    ) -> LetIn:
        """Before a task is queued: refuse it if it would not be answered in time.

        With nothing before it, it is tried unless even a quick run would be late. Behind others it
        must fit with a margin: a late task takes time from those who could be in time.

        ``encode_s`` is predicted for all its items, of which the first is of ``kind``; ``ahead_s``
        goes before it, running calls included. The ``Refusal`` is ``cannot`` or ``too-late``.
        """
        self._forget(now_s)
        spread = 1 + self._ratio.spread / self._ratio.mean
        slow_s = self._shared_s(encode_s, kind) * spread + self.answer_s + self._answer.spread
        wait_s, left_s = self.wait_s(ahead_s) + ahead_s * self._wait.spread, ends_s - now_s
        refusal = self._judged(self._least_s(encode_s), wait_s, slow_s, left_s)
        if refusal is None:
            return LetIn.CHANCE if self.service_s(encode_s, kind) > left_s else LetIn.FITS
        if not self._is_silent(now_s, ends_s):
            raise refusal
        self._silent_since_s = now_s
        return LetIn.PROBE

    def _forget(self, now_s: float) -> None:
        if now_s - self._waited_s > FORGOTTEN_S:
            self._wait = _as_predicted()

    def _shared_s(self, encode_s: float, kind: Hashable) -> float:
        """Encoding of all its items, in calls of the usual batch size."""
        return encode_s * self._ratio.mean * self._batch.mean(kind, 1.0)

    def _least_s(self, encode_s: float) -> float:
        """The whole service, alone and if all goes well."""
        return encode_s * self._ratio.least + self._answer.least

    def _judged(self, quick_s: float, wait_s: float, own_s: float, left_s: float) -> Refusal | None:
        left = f"{max(left_s, 0.0):.3g} s are left"
        if left_s <= 0 or quick_s > left_s:
            message = (
                f"it would be answered in {quick_s:.3g} s at best, and {left}; "
                "send it with a later deadline"
            )
            return Refusal("cannot", message)
        if not (self._ratio.count or self._answer.count) or not wait_s or wait_s + own_s <= left_s:
            return None
        message = (
            f"it would be answered in {wait_s + own_s:.3g} s, and {left}; "
            "send less at a time or with a later deadline"
        )
        return Refusal("too-late", message, retry_s=wait_s + own_s - left_s)

    def _is_silent(self, now_s: float, ends_s: float) -> bool:
        """Whether nothing was measured for ``PROBE_S`` since something was refused."""
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        return now_s - self._silent_since_s >= PROBE_S and ends_s > now_s


def _as_predicted() -> Ewma:
    ewma = Ewma()
    ewma.add(1.0)
    return ewma


def expected_of(scheduler: Scheduler, modalities: Iterable[str]) -> list[ExpectedTimes]:
    """Latency and energy of one item of each modality, on the trusted arm that takes least energy.

    Modalities are left out whose latency the scheduler does not know within a factor ``SURE``.
    """
    expected = []
    for modality in modalities:
        given: dict[str, Any] = {"modality": modality, "batch": 1}
        contexts = scheduler.contexts
        context = {name: given[name] for name in contexts.names} if contexts else None
        trusted = scheduler.belief_table(context).loc[scheduler.seeds]
        sure = trusted[trusted["latency_s_high"] < SURE * trusted["latency_s_low"]]
        if not sure.empty:
            energy_j = np.sqrt(sure["energy_j_low"] * sure["energy_j_high"])
            best = energy_j.fillna(math.inf).idxmin()
            latency_s = math.sqrt(sure["latency_s_low"][best] * sure["latency_s_high"][best])
            expected.append(ExpectedTimes(modality, latency_s, float(energy_j[best])))
    return expected
