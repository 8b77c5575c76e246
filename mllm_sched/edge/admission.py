"""Whether a task can be answered in time, from how long such tasks took so far."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakSet

from mllm_sched.edge.entries import Entry
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.running import LEAP, Running

KINDS = 256  # that have a mean of their own, those seen last
TOO_SHORT_S = 0.1  # a predicted wait that a single call under way may double


@dataclass(frozen=True)
class Expected:
    """What one item of a modality is expected to take; NaN where nothing is known."""

    modality: str
    latency_s: float
    energy_j: float


class Admission:
    """Predicts the service of tasks, and refuses those that cannot be in time.

    What was never measured refuses nobody. And when no measurement followed a refusal for
    ``probe_s``, one task is let through all the same: a few slow runs would else shut the door for
    good, since nobody would come in any more to show that it is better now.

    Parameters
    ----------
    unknown_s
        Seconds of encoding to reckon with for a modality of which nothing is known.
    probe_s
        See above.

    Examples
    --------
    >>> admission = Admission()
    >>> admission.encoded("image", 0.5)
    >>> admission.answered(1.0)
    >>> entry = Entry("ann", None, 0.0, ends_s=3.0, cost_s=admission.encode_s("image"))
    >>> admission.check(entry, ahead_s=1.0, now_s=0.0)
    >>> admission.check(entry, ahead_s=2.0, now_s=0.0)
    Traceback (most recent call last):
    mllm_sched.edge.refusals.Refusal: too-late: it would be answered in 3.5 s, and 3 s are left; \
send less at a time or with a later deadline; ask again in 0.5 s
    """

    def __init__(self, *, unknown_s: float = 0.1, probe_s: float = 5.0) -> None:
        self.unknown_s, self.probe_s = unknown_s, probe_s
        self._latency: dict[str, Running] = {}
        self._energy: dict[str, Running] = {}
        self._of_kind: OrderedDict[tuple[str, Hashable], Running] = OrderedDict()
        self._answer = Running()
        self._ratio = Running()  # of seconds that encoding took to those predicted
        self._batch = Running()  # items that share a call: each waits for all of it
        self._wait = Running(1.0)  # of seconds that waiting took to those predicted
        self._probes: WeakSet[Entry] = WeakSet()
        self._silent_since_s: float | None = None

    @property
    def answer_s(self) -> float:
        """Mean seconds from features to the end of an answer; 0 before there was one."""
        return self._answer.mean if self._answer.known else 0.0

    def encode_s(self, modality: str, kind: Hashable = None) -> float:
        """Predicted seconds of encoding of an item: the mean of its kind, else of its modality."""
        for running in (self._of_kind.get((modality, kind)), self._latency.get(modality)):
            if running is not None and running.known:
                return running.mean
        return self.unknown_s

    @property
    def mean_s(self) -> float:
        """Seconds of encoding of an item, whatever its modality."""
        known = [one.mean for one in self._latency.values() if one.known]
        return sum(known) / len(known) if known else self.unknown_s

    def predictions(self) -> list[Expected]:
        """What is expected of each modality of which something is known, by name."""
        return [
            Expected(modality, latency.mean, self._energy[modality].mean)
            for modality, latency in sorted(self._latency.items())
        ]

    def expect(self, modality: str, latency_s: float, energy_j: float = math.nan) -> None:
        """What a scheduler predicts of a modality, which counts until it was measured."""
        if not (latency := self._latency.get(modality)) or not latency.count:
            self._latency[modality] = Running(latency_s)
            self._energy[modality] = Running(energy_j)

    def encoded(
        self,
        modality: str,
        latency_s: float,
        energy_j: float = math.nan,
        kind: Hashable = None,
        batch: int = 1,
    ) -> None:
        """One item was encoded, in so many seconds of a call that it shared with others.

        Parameters
        ----------
        latency_s
            The item's part of the call.
        energy_j
            NaN if the meter was gone.
        kind
            See ``encode_s``.
        batch
            Items of the call.
        """
        self._batch.add(batch)
        ratio = latency_s / self.encode_s(modality, kind) if modality in self._latency else 1.0
        self._ratio.add(min(max(ratio, 1 / LEAP), LEAP))
        self._latency.setdefault(modality, Running()).add(latency_s)
        self._energy.setdefault(modality, Running()).add(energy_j)
        if kind is not None:
            self._of_kind.setdefault((modality, kind), Running()).add(latency_s)
            self._of_kind.move_to_end((modality, kind))
            if len(self._of_kind) > KINDS:
                self._of_kind.popitem(last=False)
        self._silent_since_s = None

    def answered(self, took_s: float) -> None:
        """The LLM's answer took so many seconds, from features to its end."""
        self._answer.add(took_s)
        self._silent_since_s = None

    def waited(self, predicted_s: float, took_s: float, *, in_vain: bool = False) -> None:
        """A task waited so long for its turn, instead of the encoding predicted to go before it.

        The device does not encode all the time, and others may come who go first. One that gave up
        would have waited longer, so it says only that a wait may be as long.
        """
        if predicted_s < TOO_SHORT_S or (in_vain and took_s <= predicted_s * self._wait.mean):
            return
        self._wait.add(took_s / predicted_s)

    def wait_s(self, ahead_s: float) -> float:
        """Seconds until so many seconds of encoding are done, by what such waits took so far."""
        return ahead_s * self._wait.mean

    def service_s(self, entry: Entry, rest_s: float = 0.0) -> float:
        """Seconds from the start of its encoding to the end of its answer, as predicted.

        ``rest_s`` of encoding follow, of further items. A task that is let through to see how long
        it takes is not to be given up: 0.
        """
        if entry in self._probes:
            return 0.0
        return self._encode_s(entry, rest_s) + self.answer_s

    def _encode_s(self, entry: Entry, rest_s: float) -> float:
        """Of all its items, in calls that each shares with as many others as usual."""
        shared = self._batch.mean if self._batch.known else 1.0
        ratio = self._ratio.mean if self._ratio.known else 1.0
        return (entry.cost_s + rest_s) * ratio * shared

    def _least_s(self, entry: Entry, rest_s: float) -> float:
        """The same as ``service_s``, if all goes well."""
        shared = max(1.0, self._batch.least)
        return (entry.cost_s + rest_s) * self._ratio.least * shared + self._answer.least

    def check_first(self, ahead_s: float, now_s: float, ends_s: float) -> None:
        """Before an upload, of which nothing is known but its user: refuse what is hopeless.

        Parameters
        ----------
        ahead_s
            Seconds of encoding, of others and running, that would go before this user's next task;
            not all that waits, or the work of some would keep out others.
        now_s, ends_s
            Now, and the deadline.

        Raises
        ------
        Refusal
            ``cannot``, ``too-late``.
        """
        encode_s = min((one.least for one in self._latency.values()), default=0.0)
        quick_s = encode_s + self._answer.least
        refusal = self._judged(quick_s, self.wait_s(ahead_s), quick_s, ends_s - now_s)
        if refusal is not None and not self._is_silent(now_s, ends_s):
            raise refusal

    def check(self, entry: Entry, ahead_s: float, now_s: float, rest_s: float = 0.0) -> None:
        """Before an entry is queued: refuse it if it would not be answered in time.

        With nothing before it, it is worth a try unless even a quick run would be late. Behind
        others it must fit even if it takes a bit longer than the mean: what would be late takes
        time from those who need not be.

        Parameters
        ----------
        ahead_s
            Seconds of encoding that go before it, running ones included.
        rest_s
            Seconds of encoding that follow, of further items of the same task.

        Raises
        ------
        Refusal
            ``cannot``, ``too-late``.
        """
        ratio = self._ratio.mean if self._ratio.known else 1.0
        slow_s = self._encode_s(entry, rest_s) * (1 + self._ratio.spread / ratio)
        slow_s += self.answer_s + self._answer.spread
        wait_s, left_s = ahead_s * (self._wait.mean + self._wait.spread), entry.ends_s - now_s
        refusal = self._judged(self._least_s(entry, rest_s), wait_s, slow_s, left_s)
        if refusal is None:
            if self.service_s(entry, rest_s) > left_s:
                self._probes.add(entry)  # it has a chance, and takes nobody's time
            return
        if not self._is_silent(now_s, entry.ends_s):
            raise refusal
        self._probes.add(entry)
        self._silent_since_s = now_s

    def _judged(self, quick_s: float, wait_s: float, own_s: float, left_s: float) -> Refusal | None:
        left = f"{max(left_s, 0.0):.3g} s are left"
        if left_s <= 0 or quick_s > left_s:
            message = (
                f"it would be answered in {quick_s:.3g} s at best, and {left}; "
                "send it with a later deadline"
            )
            return Refusal("cannot", message)
        if not self._ratio.count or not wait_s or wait_s + own_s <= left_s:
            return None
        message = (
            f"it would be answered in {wait_s + own_s:.3g} s, and {left}; "
            "send less at a time or with a later deadline"
        )
        return Refusal("too-late", message, retry_s=wait_s + own_s - left_s)

    def _is_silent(self, now_s: float, ends_s: float) -> bool:
        """Whether nothing was measured for long since something was refused."""
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        return now_s - self._silent_since_s >= self.probe_s and ends_s > now_s
