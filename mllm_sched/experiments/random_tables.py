"""Random tables: boards drawn by seed from five kinds of physics, and trials of schedulers on them.

*Roofline* and *rough* are what ``adaptive-safe-gp`` was developed on, and their deviations are of
the kind that its kernel assumes. *Queueing* and *published* were kept apart. So was *board*, until
its first results led to two changes of the scheduler: an unknown arm is priced by the mean of a
log-normal, and no arm of a component is tried on which none is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched import paths
from mllm_sched.arms import Arm, ArmSpace, Factor
from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.experiments.comparison import ADAPTIVE, PENALTY, SAFE
from mllm_sched.experiments.metrics import mean_interval
from mllm_sched.experiments.parallel import spread
from mllm_sched.experiments.runner import Rule
from mllm_sched.pipeline.work import read_work
from mllm_sched.schedulers import Scheduler, make_scheduler
from mllm_sched.schedulers.gp import matern

Array = NDArray[np.float64]
SIZES = {48: (3, 4, 4), 60: (3, 4, 5), 240: (4, 6, 10)}  # components, power levels, loads
SLOWER = 1.35  # a drift multiplies the latency of the best arm's component by this


@dataclass(frozen=True)
class Table:
    """True means of every arm, a limit that some arms meet, and the arms trusted to meet it."""

    space: ArmSpace
    latency_s: Array  # shape (arms,)
    energy_j: Array  # shape (arms,)
    limit_s: float
    trusted: Sequence[Arm]  # full power and load of components that truly meet the limit

    def best(self) -> int:
        """Arm of least energy within the limit."""
        return int(np.where(self.latency_s <= self.limit_s, self.energy_j, np.inf).argmin())

    def best_j(self) -> float:
        """Least energy within the limit."""
        return float(self.energy_j[self.best()])

    def noise_sds(self, share: float) -> tuple[float, float]:
        """Deviations of log latency and log power, as a share of what the arms vary by."""
        power_w = self.energy_j / self.latency_s
        return share * float(np.log(self.latency_s).std()), share * float(np.log(power_w).std())

    def with_slower(self, component: str, factor: float) -> Table:
        """The same table with one component slower; the limit stays."""
        slower = np.array([factor if arm.component == component else 1.0 for arm in self.space])
        return replace(self, latency_s=self.latency_s * slower, energy_j=self.energy_j * slower)


def roofline(seed: int, arms: int = 60) -> Table:
    """Arithmetic and memory bound by a smooth maximum of both; power rises with clock and load."""
    rng, space = np.random.default_rng([1, seed, arms]), _space(arms, 15, 0.2)
    power_w, load = _ordered(space)
    latency, power = [], []
    for _ in space.factors[0].levels:
        clock = (power_w / 60) ** rng.uniform(0.3, 0.6)
        compute = np.exp(rng.normal(0, 0.7)) / clock
        memory = np.exp(rng.normal(-0.5, 0.7)) / np.minimum(1, (power_w / 30) ** 0.5)
        alone = (compute**3 + memory**3) ** (1 / 3) + rng.uniform(0.01, 0.2)
        serial = rng.uniform(0, 0.3)
        latency.append(alone * (serial + (1 - serial) / load) * np.exp(_bumps(rng, space, 0.08)))
        busy = rng.uniform(5, 30) * clock ** rng.uniform(1.5, 3) * load ** rng.uniform(0.6, 1)
        idle = rng.uniform(3, 12) * (power_w / 60) ** 0.3
        power.append((idle + busy) * np.exp(_bumps(rng, space, 0.08)))
    return _table(space, np.concatenate(latency), np.concatenate(power), rng)


def rough(seed: int, arms: int = 60) -> Table:
    """Trends with large smooth deviations, drawn from a Gaussian process; no physics."""
    rng, space = np.random.default_rng([2, seed, arms]), _space(arms, 15, 0.2)
    power, load = _positions(space)
    latency, watts = [], []
    for _ in space.factors[0].levels:
        fall = 0.8 * rng.uniform(0.3, 1.2) * power + rng.uniform(0.5, 1.5) * load
        latency.append(np.exp(rng.normal(0, 0.4) - fall + _bumps(rng, space, 0.25)))
        rise = rng.uniform(0.3, 1.4) * power + rng.uniform(0, 0.8) * load
        watts.append(np.exp(rng.normal(0, 0.4) + rise + _bumps(rng, space, 0.2)))
    return _table(space, np.concatenate(latency), np.concatenate(watts), rng)


def queueing(seed: int, arms: int = 60) -> Table:
    """Waiting in a queue, throttling when hot, voltage in steps."""
    rng, space = np.random.default_rng([3, seed, arms]), _space(arms, 10, 0.1)
    power_w, load = _ordered(space)
    latency, power = [], []
    for _ in space.factors[0].levels:
        full = np.exp(rng.normal(0, 0.5))
        hot = 1 / (1 + np.exp(-(power_w - rng.uniform(45, 70)) / 4))
        clock = (1 - np.exp(-power_w / rng.uniform(10, 40))) * (1 - 0.25 * hot)
        served = full * clock * load ** rng.uniform(0.7, 1)
        arriving = rng.uniform(0.05, 0.5) * served.min()
        latency.append(1 / (served - arriving) + rng.uniform(0.02, 0.3) / full)
        voltage = 0.6 + 0.4 * np.floor(4 * clock / clock.max()) / 4
        busy = rng.uniform(5, 40) * voltage**2 * clock * load
        power.append(rng.uniform(2, 8) + busy + 3 * hot * rng.uniform(0, 2))
    return _table(space, np.concatenate(latency), np.concatenate(power), rng)


def board(seed: int, arms: int = 60) -> Table:
    """The simulated Orin, 60 arms, with other constants and any encoder; the CPU is not trusted."""
    rng, model = np.random.default_rng([4, seed]), calibrated_model()
    names = [
        *("gpu_s_per_flop", "gpu_s_per_byte", "gpu_s_per_kernel"),
        *("gpu_j_per_flop", "gpu_j_per_byte", "dla_s_per_flop", "dla_s_per_byte"),
    ]
    drawn = {name: getattr(model, name) * np.exp(rng.normal(0, 0.3)) for name in names}
    idle = tuple((level, watts * np.exp(rng.normal(0, 0.3))) for level, watts in model.idle_w)
    model = replace(model, **drawn, idle_w=idle)
    works = list(read_work().values())
    work, space = works[rng.integers(len(works))], ArmSpace.agx_orin()
    places = [(work, str(a.component), float(a.power_w), float(a.load)) for a in space]
    latency = np.array([model.latency_s(*place) for place in places])
    energy = np.array([model.energy_j(*place) for place in places])
    return _table(space, latency, energy / latency, rng, components=("gpu", "dla"))


def published(seed: int, arms: int = 120) -> Table:
    """The published sweep, 120 arms, its six networks as components; loads are *assumed*.

    A share of the component stretches the time; power falls towards an idle share that is drawn.
    """
    rng = np.random.default_rng([5, seed])
    sweep = pd.read_csv(paths.DATA / "published" / "orin_sweep_trace.csv")
    sweep = sweep.sort_values(["encoder", "power_w"])
    orin = ArmSpace.agx_orin()
    space = ArmSpace([Factor("component", sorted(set(sweep["encoder"]))), *orin.factors[1:]])
    load = np.tile([float(level) for level in space.factors[2].levels], len(sweep))
    alone_s, alone_j = (np.repeat(sweep[name].to_numpy(), 5) for name in ("latency_s", "energy_j"))
    idle = rng.uniform(0.2, 0.5)
    return _table(space, alone_s / load, alone_j / alone_s * (idle + (1 - idle) * load), rng)


FAMILIES: dict[str, Callable[[int, int], Table]] = {
    family.__name__: family for family in (roofline, rough, queueing, board, published)
}


def _space(arms: int, least_w: float, least_load: float) -> ArmSpace:
    components, levels, loads = SIZES[arms]
    return ArmSpace(
        [
            Factor("component", [f"unit {number}" for number in range(components)]),
            Factor("power_w", np.geomspace(least_w, 60, levels).tolist(), log=True),
            Factor("load", np.linspace(least_load, 1, loads).tolist(), log=True),
        ]
    )


def _ordered(space: ArmSpace) -> tuple[Array, Array]:
    """Power in watts and load of the arms of one component."""
    one = [arm for arm in space if arm.component == space.factors[0].levels[0]]
    return np.array([float(arm.power_w) for arm in one]), np.array([float(a.load) for a in one])


def _positions(space: ArmSpace) -> tuple[Array, Array]:
    """The same within [0, 1]."""
    one = space.features()[space.features()[:, 0] == 0]
    return one[:, 1], one[:, 2]


def _bumps(rng: np.random.Generator, space: ArmSpace, sd: float) -> Array:
    """Smooth deviations over the arms of one component."""
    covariance = 1e-9 * np.eye(len(space) // len(space.factors[0].levels))
    smooth = np.ones_like(covariance)
    for place in _positions(space):
        smooth *= matern(np.abs(place[:, None] - place[None]) / 0.6)
    drawn: Array = sd * np.linalg.cholesky(smooth + covariance) @ rng.standard_normal(len(smooth))
    return drawn


def _table(
    space: ArmSpace,
    latency_s: Array,
    power_w: Array,
    rng: np.random.Generator,
    components: Sequence[str] = (),
) -> Table:
    """With a limit that between a fifth and three fifths of the arms meet."""
    top = [factor.levels[-1] for factor in space.factors[1:]]
    names = space.factors[0].levels
    tops = [
        space.arm(component=name, power_w=top[0], load=top[1])
        for name in names
        if not components or name in components
    ]
    ordered = np.sort(latency_s)
    place = int(rng.uniform(0.2, 0.6) * len(ordered))
    quickest = min(float(latency_s[arm.index]) for arm in tops)
    limit_s = max(float(np.sqrt(ordered[place] * ordered[place + 1])), 1.1 * quickest)
    trusted = [arm for arm in tops if latency_s[arm.index] <= 0.98 * limit_s]
    return Table(space, latency_s, latency_s * power_w, limit_s, trusted)


@dataclass(frozen=True)
class Trial:
    """A scheduler on the tables of one family."""

    rule: Rule
    family: str  # of ``FAMILIES``
    arms: int
    noise: float = 0.03  # SD of log latency and log power of a measurement, in units of the table's
    tasks: int = 500
    heavy: bool = False  # noise of Student's t with 3 degrees of freedom, of the same deviation
    raw: bool = False  # the scheduler observes exponentials of the outcomes, and models these
    seeds: int | None = None  # number of trusted arms given to the scheduler; all by default
    label: str = ""  # what is different in this trial

    def play(self, seed: int) -> list[tuple[float, float]]:
        """Mean energy over the oracle's, and share of tasks truly beyond the limit.

        First without drift; then with the best arm's component slower from half-time on. Both
        share their first half.
        """
        table = FAMILIES[self.family](seed, self.arms)
        limit_s, first_j = table.limit_s, float(table.energy_j[table.trusted[0].index])
        sds, half = np.array(table.noise_sds(self.noise)), self.tasks // 2
        scheduler = make_scheduler(
            self.rule.name,
            table.space,
            limits={"latency_s": 1.0 if self.raw else limit_s},
            seeds=table.trusted[: self.seeds],
            rng=seed,
            **self.rule.settings,
        )
        rng = np.random.default_rng([6, seed])

        def run(
            table: Table, scheduler: Scheduler, rng: np.random.Generator, tasks: int
        ) -> Iterator[tuple[float, bool]]:
            best_j = table.best_j()
            for _ in range(tasks):
                decision = scheduler.ask()
                arm, noise = decision.arm.index, sds * self._draw(rng)
                latency_s = table.latency_s[arm] * math.exp(noise[0])
                energy_j = table.energy_j[arm] * math.exp(noise.sum())
                if self.raw:  # the limit is then 1
                    latency_s = math.exp(latency_s / limit_s - 1)
                    energy_j = math.exp(energy_j / first_j - 1)
                scheduler.tell(decision.id, latency_s=latency_s, energy_j=energy_j)
                yield table.energy_j[arm] / best_j, table.latency_s[arm] > limit_s

        before, outcomes = list(run(table, scheduler, rng, half)), []
        slower = table.with_slower(str(table.space[table.best()].component), SLOWER)
        for after in (table, slower):
            late = run(after, *deepcopy((scheduler, rng)), self.tasks - half)
            energies, violations = zip(*before, *late, strict=True)
            outcomes.append((float(np.mean(energies)), float(np.mean(violations))))
        return outcomes

    def _draw(self, rng: np.random.Generator) -> Array:
        return rng.standard_t(3, 2) / math.sqrt(3.0) if self.heavy else rng.standard_normal(2)


def play_all(trials: Iterable[Trial], tables: int, n_jobs: int | None = None) -> pd.DataFrame:
    """Every trial on the same ``tables`` tables, without drift and with it.

    One row per drift, trial and table: ``scheduler``, ``label``, ``family`` (with its arms),
    ``noise``, ``drift``, ``table``, ``energy`` (over the oracle's), ``violations`` (share).
    """
    trials = list(trials)
    jobs = [(trial, tables) for trial in trials]
    played = spread(_play, jobs, label="random tables", n_jobs=n_jobs)
    rows = [
        {
            "scheduler": trial.rule.label,
            "label": trial.label,
            "family": f"{trial.family} {trial.arms}",
            "noise": trial.noise,
            "drift": drift,
            "table": seed,
            "energy": outcomes[drift][0],
            "violations": outcomes[drift][1],
        }
        for drift in (False, True)
        for trial, seeds in zip(trials, played, strict=True)
        for seed, outcomes in enumerate(seeds)
    ]
    return pd.DataFrame(rows)


def _play(trial: Trial, tables: int) -> list[list[tuple[float, float]]]:
    return [trial.play(seed) for seed in range(tables)]


def summary(played: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean energy and violations with 95 % intervals; median and worst tenth of the energy.

    ``by`` are the columns of ``play_all`` that make a row of the result.
    """
    rows = []
    for key, group in played.groupby(by, sort=False):
        energy, energy_low, energy_high = mean_interval(group["energy"].to_numpy())
        share, share_low, share_high = mean_interval(group["violations"].to_numpy())
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "median": group["energy"].median(),
                "energy": energy,
                "energy_low": energy_low,
                "energy_high": energy_high,
                "worst_tenth": group["energy"].quantile(0.9),
                "violations": share,
                "violations_low": share_low,
                "violations_high": share_high,
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


PENALISED = {"penalty": PENALTY}
FIELD = [
    ADAPTIVE,
    SAFE,
    Rule("UCB + penalty", "ucb", PENALISED),
    Rule("Thompson + penalty", "thompson", PENALISED),
    Rule("Epsilon-greedy + penalty", "epsilon-greedy", PENALISED),
    Rule("Fixed at full power", "fixed"),
    Rule("SafeOpt", "safeopt"),
    Rule("StageOpt", "stageopt"),
    Rule("GoOSE", "goose"),
    Rule("Safe Thompson", "safe-thompson"),
    Rule("EdgeBOL", "edgebol"),
    Rule("Safe LinUCB", "safe-linucb"),
    Rule("Conformal 5 %", "conformal"),
    Rule("Conformal 0.5 %", "conformal", {"violation_rate": 0.005}),
    Rule("Risk budget", "risk-budget"),
    Rule("CONFIG", "config"),
    Rule("Primal-dual", "primal-dual"),
    Rule("Constrained UCB", "constrained-ucb"),
    Rule("Profile, then commit", "profile-then-commit"),
    Rule("Sliding-window UCB + penalty", "sliding-window-ucb", PENALISED),
    Rule("Discounted UCB + penalty", "discounted-ucb", PENALISED),
    Rule("EXP3 + penalty", "exp3", PENALISED),
    Rule("Safe GP-UCB, forgets", "safe-gp-ucb", {"forget_rate": 0.002}),
]
