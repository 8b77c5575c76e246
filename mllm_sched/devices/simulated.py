"""A simulated Jetson AGX Orin, calibrated on published measurements. It is not a Jetson."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from mllm_sched.arms import ORIN_POWER_LEVELS, Arm, ArmSpace
from mllm_sched.devices.base import Expected
from mllm_sched.devices.disturbances import Background, Drift, Noise, Outage, Throttling
from mllm_sched.devices.orin_model import COMPONENTS, calibrated_model
from mllm_sched.measurement import Measurement
from mllm_sched.pipeline.work import Work, encoder_modalities, read_work
from mllm_sched.tasks import Task

ACCOUNTINGS = ("total", "marginal", "tenants")


class SimulatedOrin:
    """The board of ``orin_model.py``, with noise and, where asked for, disturbances.

    Parameters
    ----------
    accounting
        What energy covers. ``total``: what the module's rails would show while the task runs, idle
        power included, work of other tenants left out. ``marginal``: without idle power.
        ``tenants``: with the work of others who keep the rest of the component busy meanwhile.
    noise
        By default the scatter of the published latencies, and the same again for power (assumed).
    throttling, drift, background, outages
        Disturbances. While a component is out its runs fail; its true latency is then infinite,
        and its energy NaN.

    Examples
    --------
    >>> device = SimulatedOrin(seed=0)
    >>> arm = device.space.arm(component="dla", power_w=30, load=1.0)
    >>> measurement = device.run(arm, Task("image", "resnet-50"))
    >>> measurement.evidence, measurement.latency_s < 0.01
    ('simulated', True)
    """

    name = "agx-orin-sim"
    evidence = "simulated"
    energy_evidence = "simulated"

    def __init__(
        self,
        seed: int | np.random.Generator | np.random.SeedSequence = 0,
        *,
        components: Sequence[str] = COMPONENTS,
        power_levels: Sequence[float] = tuple(ORIN_POWER_LEVELS),
        accounting: str = "total",
        noise: Noise | None = None,
        throttling: Throttling | None = None,
        drift: Iterable[Drift] = (),
        background: Iterable[Background] = (),
        outages: Iterable[Outage] = (),
    ) -> None:
        if accounting not in ACCOUNTINGS:
            raise ValueError(f"accounting={accounting!r}: expected one of {', '.join(ACCOUNTINGS)}")
        _check_components("components", components)
        self.space = ArmSpace.agx_orin(components, power_levels)
        self.modalities = dict(encoder_modalities())
        self.accounting = accounting
        self.rng = np.random.default_rng(seed)
        scatter = calibrated_model().noise_sd
        self.noise = noise or Noise(scatter, scatter)
        self.throttling = throttling
        self.drift = tuple(drift)
        self.background = tuple(background)
        self.outages = tuple(outages)
        _check_components("drift", [change.component for change in self.drift])
        _check_components("outages", [outage.component for outage in self.outages])
        self.stationary = not (throttling or self.drift or self.background or self.outages)
        self.temperature_c = throttling.ambient_c if throttling else 25.0
        self.step = 0
        self._asked: Task | None = None  # the task and the state that the means below are of
        self._state: tuple[object, ...] = ()
        self._means = Expected(np.empty(0), np.empty(0))
        self._components = np.array([str(arm.component) for arm in self.space])

    def run(self, arm: Arm, task: Task) -> Measurement:
        """One task on one arm; advances the board by one task."""
        expected = self.expected_all(task)
        index = self.space.index(arm)
        latency_factor, energy_factor = self.noise.draw(self.rng)
        latency_s = float(expected.latency_s[index] * latency_factor)
        energy_j = float(expected.energy_j[index] * energy_factor)
        measurement = self._measurement(arm, task, latency_s, energy_j)
        self.step += 1
        hot = self.throttling  # its ``start`` is a task; ``step`` is already the next one
        if hot and self.step > hot.start and not measurement.failed:
            power = measurement.energy_j / measurement.latency_s
            self.temperature_c = hot.warmed(self.temperature_c, power, measurement.latency_s)
        return measurement

    def expected(self, arm: Arm, task: Task) -> Measurement:
        """The true mean of the arm for the next task."""
        means, index = self.expected_all(task), self.space.index(arm)
        latency_s, energy_j = float(means.latency_s[index]), float(means.energy_j[index])
        return self._measurement(arm, task, latency_s, energy_j)

    def expected_all(self, task: Task) -> Expected:
        """The true means of all arms for the next task; the same object while nothing changes."""
        state: tuple[object, ...] = ()
        if not self.stationary:
            state = (
                tuple(load.at(self.step) for load in self.background),
                tuple(change.at(self.step) for change in self.drift),
                self.throttling and self.throttling.slowdown(self.temperature_c),
                tuple(outage.at(self.step) for outage in self.outages),
            )
        if task is not self._asked or state != self._state:
            self._asked, self._state, self._means = task, state, self._disturbed(task)
        return self._means

    def _disturbed(self, task: Task) -> Expected:
        background = task.background_load
        if self.background:
            shares = [background, *(load.at(self.step) for load in self.background)]
            background = 1.0 - float(np.prod([1.0 - share for share in shares]))
        key = (task.encoder, task.modality, task.size, background)
        means = _means(self.space, self.accounting, *key)
        if self.stationary:
            return means
        slower = np.ones(len(self.space))
        for change in self.drift:
            slower[self._components == change.component] *= change.at(self.step)
        if self.throttling:
            slower *= self.throttling.slowdown(self.temperature_c)
        latency_s, energy_j = means.latency_s * slower, means.energy_j * slower
        for outage in self.outages:
            if outage.at(self.step):
                gone = self._components == outage.component
                latency_s[gone], energy_j[gone] = np.inf, np.nan
        return Expected(latency_s, energy_j)

    def available(self) -> list[Arm] | None:
        """Arms that can run the next task, where an outage is announced; None for all of them."""
        if not self.outages:
            return None
        out = {o.component for o in self.outages if o.announced and o.at(self.step)}
        return [arm for arm in self.space if arm.component not in out] if out else None

    def _measurement(self, arm: Arm, task: Task, latency_s: float, energy_j: float) -> Measurement:
        out = [outage for outage in self.outages if outage.component == arm.component]
        failed = ""
        if any(outage.at(self.step) for outage in out):
            failed = f"{arm.component} does not answer"
        return Measurement(arm, task, latency_s, energy_j, self.evidence, failed=failed)

    def close(self) -> None:
        """Nothing to release."""


def task_work(encoder: str, modality: str, size: int) -> Work:
    """Work of a task; ValueError lists the known encoders, or names the right modality."""
    modalities = encoder_modalities()
    if encoder not in modalities:
        raise ValueError(f"encoder {encoder!r}: expected one of {', '.join(modalities)}")
    if modality != modalities[encoder]:
        raise ValueError(f"encoder {encoder!r} takes {modalities[encoder]}, not {modality}")
    return read_work()[encoder].scaled(size)


def _check_components(name: str, components: Iterable[str]) -> None:
    for component in components:
        if component not in COMPONENTS:
            known = ", ".join(COMPONENTS)
            raise ValueError(f"{name}: {component!r}: expected one of {known}")


@lru_cache(maxsize=256)
def _means(
    space: ArmSpace, accounting: str, encoder: str, modality: str, size: int, background: float
) -> Expected:
    work, model = task_work(encoder, modality, size), calibrated_model()
    latency_s, energy_j = np.empty(len(space)), np.empty(len(space))
    for arm in space:
        where = str(arm.component), float(arm.power_w)
        latency_s[arm.index] = model.latency_s(work, *where, float(arm.load), background)
        energy_j[arm.index] = model.marginal_energy_j(work, *where)
        if accounting != "marginal":
            energy_j[arm.index] += model.idle_power_w(where[1]) * latency_s[arm.index]
        if accounting == "tenants":
            energy_j[arm.index] += model.tenants_energy_j(work, *where, float(arm.load), background)
    latency_s.flags.writeable = energy_j.flags.writeable = False
    return Expected(latency_s, energy_j)
