"""Is a scheduler's performance stable? The same comparison at several power levels or limits.

The paper says so and does not say of what. Here it is the energy over that of the best arm, the
tasks beyond the limit, and the saving against the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from mllm_sched.arms import ORIN_POWER_LEVELS, Arm
from mllm_sched.devices import KnownDevice
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.schedulers.references import truly_best
from mllm_sched.study import metrics
from mllm_sched.study.lineup import ADAPTIVE, full_power_arms, paper_lineup, transferred
from mllm_sched.study.metrics import highest, lowest
from mllm_sched.study.plots import OURS
from mllm_sched.study.runner import Rule
from mllm_sched.study.sensitivity import all_tasks
from mllm_sched.study.sweep import sweep
from mllm_sched.tasks import Task

BASELINES = ("UCB", "Epsilon-greedy")
LIMITS_S = (0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 60.0)  # from infeasible to slack
END = 0.1  # the last tenth of a run shows where a scheduler ended


@dataclass(frozen=True)
class Case:
    """One setting of the comparison.

    Attributes
    ----------
    label
        Its name in tables and figures.
    limit_s
        Latency limit in seconds.
    power_levels
        Those that may be chosen, in watts.
    board
        Further settings of the simulated board.
    """

    label: str
    limit_s: float
    power_levels: tuple[int, ...] = tuple(ORIN_POWER_LEVELS)
    board: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Arguments of the simulated board."""
        return {"power_levels": self.power_levels, **self.board}

    def open(self) -> SimulatedOrin:
        """The board of this case."""
        return SimulatedOrin(**self.settings())

    def feasible(self, task: Task) -> int:
        """How many arms truly meet the limit."""
        return int((self.open().expected_all(task).latency_s <= self.limit_s).sum())

    def trusted(self, task: Task) -> list[Arm]:
        """Full-power arms of GPU and DLA that meet the limit; both of them if neither does.

        Somebody vouches for a trusted arm, so it is one that does meet the limit.
        """
        board = self.open()
        arms = full_power_arms(board.space)
        within = [arm for arm in arms if board.expected(arm, task).latency_s <= self.limit_s]
        return within or arms


def power_cases(limit_s: float, **board: Any) -> list[Case]:
    """Every power level by itself, and all of them to choose from."""
    fixed = [Case(name, limit_s, (level,), board) for level, name in ORIN_POWER_LEVELS.items()]
    return [*fixed, Case("any level", limit_s, board=board)]


def limit_cases(limits_s: Sequence[float], **board: Any) -> list[Case]:
    """Every latency limit, on the whole board."""
    return [Case(f"{limit:g} s", limit, board=board) for limit in limits_s]


@dataclass(frozen=True)
class Stability:
    """What every scheduler came to in every case.

    Attributes
    ----------
    cases
        In order.
    runs
        Of ``metrics.per_run``, with a column ``case``.
    ends
        Mean true latency and energy over the last tenth of a run: ``case``, ``scheduler``,
        ``seed``, ``latency_s``, ``energy_j``, and ``infeasible``, the share of tasks at which the
        scheduler said that no arm can meet the limit.
    feasible
        How many arms truly meet the limit, by case.
    evidence
        What the numbers are.
    """

    cases: Sequence[Case]
    runs: pd.DataFrame
    ends: pd.DataFrame
    feasible: dict[str, int]
    evidence: str

    @cached_property
    def summary(self) -> pd.DataFrame:
        """``metrics.summarise`` of every case: ``case``, ``scheduler``, ``quantity``, ..."""
        return self._by_case(metrics.summarise)

    @cached_property
    def savings(self) -> pd.DataFrame:
        """Energy that safe GP-UCB saves in every case, by other scheduler, paired by seed."""
        return self._by_case(lambda runs: metrics.savings(runs, OURS))

    def wide(self, quantity: str) -> pd.DataFrame:
        """Mean of a quantity: a row a scheduler, a column a case."""
        part = self.summary[self.summary["quantity"] == quantity]
        wide = part.pivot(index="scheduler", columns="case", values="value")
        return wide[[case.label for case in self.cases]]

    def boards(self, task: Task) -> pd.DataFrame:
        """Arms, arms within the limit, and the best arm with its true means; a row a case."""
        rows = []
        for case in self.cases:
            board = case.open()
            means = board.expected_all(task)
            values = {"energy_j": means.energy_j, "latency_s": means.latency_s}
            best, met = truly_best(values, "energy_j", {"latency_s": case.limit_s})
            rows.append(
                {
                    "case": case.label,
                    "arms": len(board.space),
                    "within the limit": self.feasible[case.label],
                    "best arm": str(board.space[best]) if met else f"none; {board.space[best]}",
                    "latency_s": means.latency_s[best],
                    "energy_j": means.energy_j[best],
                }
            )
        return pd.DataFrame(rows)

    def numbers(self) -> pd.DataFrame:
        """The numbers that claims refer to, over the cases in which some arm meets the limit.

        ``energy over oracle, worst`` and ``best``, and the ``spread`` between them, paired by seed;
        ``violations, worst``; ``saving vs <baseline>, least``. What is said of the worst case must
        hold in all, so its interval reaches to the worst bound of any case.

        Raises
        ------
        ValueError
            If no case has an arm within its limit.
        """
        possible = [case.label for case in self.cases if self.feasible[case.label]]
        if not possible:
            limits = ", ".join(f"{case.limit_s:g}" for case in self.cases)
            raise ValueError(f"limits of {limits} s: no arm meets any of them; raise one")
        ours = self.summary[self.summary["scheduler"] == OURS]
        ours = ours[ours["case"].isin(possible)].set_index("quantity")
        energy = ours.loc[["energy_over_oracle"]]
        rows = [
            ("energy over oracle, worst", *highest(energy)),
            ("energy over oracle, best", *lowest(energy)),
            ("energy over oracle, spread", *self._spread(energy)),
            ("violations, worst", *highest(ours.loc[["violations"]])),
        ]
        saved = self.savings[self.savings["case"].isin(possible)]
        for other in BASELINES:
            rows.append((f"saving vs {other}, least", *lowest(saved[saved["scheduler"] == other])))
        table = pd.DataFrame(rows, columns=["key", "value", "low", "high", "n"])
        return table.assign(evidence=self.evidence)

    def _spread(self, energy: pd.DataFrame) -> tuple[Any, ...]:
        """From the best case to the worst, paired by seed."""
        runs = self.runs[self.runs["scheduler"] == OURS]
        wide = runs.pivot(index="seed", columns="case", values="energy_over_oracle")
        means = energy.set_index("case")["value"]
        spread = (wide[means.idxmax()] - wide[means.idxmin()]).to_numpy()
        return (*metrics.interval(spread), len(spread))

    def _by_case(self, summarise: Any) -> pd.DataFrame:
        parts = {
            case.label: summarise(self.runs[self.runs["case"] == case.label].drop(columns="case"))
            for case in self.cases
        }
        return pd.concat(parts, names=["case"]).reset_index("case").reset_index(drop=True)


def lineup(device: KnownDevice, task: Task) -> list[Rule]:
    """The paper's line-up, its rule with hyperparameters for this board, and the adaptive rule."""
    rules = paper_lineup(transferred(device, task, all_tasks()))
    return [*rules[:2], ADAPTIVE, *rules[2:]]


def play(
    cases: Sequence[Case],
    task: Task,
    steps: int,
    seeds: int | Sequence[int],
    rules: Callable[[KnownDevice], list[Rule]] | None = None,
    **spread: Any,
) -> Stability:
    """Play the same rules in every case.

    Parameters
    ----------
    cases, task, steps, seeds
        What is played; for a seed all schedulers of a case meet the same noise.
    rules
        From a board to who plays on it; by default the line-up.
    **spread
        ``n_jobs`` or ``dask`` of ``sweep``.
    """
    runs, ends, made = [], [], {}
    who = rules or (lambda board: lineup(board, task))
    for case in cases:
        limits, key = {"latency_s": case.limit_s}, str(case.settings())
        if key not in made:  # boards of the same settings have the same rules
            made[key] = who(case.open())
        table = sweep(
            made[key],
            SimulatedOrin.name,
            task,
            steps,
            seeds,
            limits=limits,
            trusted=case.trusted(task),
            device_settings=case.settings(),
            allow_infeasible=True,
            label=case.label,
            **spread,
        )
        runs.append(metrics.per_run(table, limits).assign(case=case.label))
        ends.append(_ends(table, steps).assign(case=case.label))
    feasible = {case.label: case.feasible(task) for case in cases}
    return Stability(cases, pd.concat(runs), pd.concat(ends), feasible, SimulatedOrin.evidence)


def _ends(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Where every run ended; see ``Stability.ends``."""
    last = table[table["step"] >= steps - max(1, round(END * steps))]
    columns = {"latency_s": "true_latency_s", "energy_j": "true_energy_j"}
    groups = last.groupby(["scheduler", "seed"], observed=True)
    ends = pd.DataFrame({name: groups[column].mean() for name, column in columns.items()})
    ends["infeasible"] = table.groupby(["scheduler", "seed"], observed=True)["infeasible"].mean()
    return ends.reset_index()
