"""The schedulers of a comparison, and the same tasks, seeds and noise for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mllm_sched.arms import Arm
from mllm_sched.devices import Device, KnownDevice, open_device
from mllm_sched.devices.base import full_power_arms as full_power_arms
from mllm_sched.devices.base import trusted_arms as trusted_arms
from mllm_sched.experiments import metrics
from mllm_sched.experiments.hyperparameters import all_tasks as all_tasks
from mllm_sched.experiments.hyperparameters import transferred as transferred
from mllm_sched.experiments.runner import Rule, sweep
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

OURS = "Safe GP-UCB"  # the paper's rule; figures draw it above the others
SAFE, ADAPTIVE = Rule(OURS, "safe-gp-ucb"), Rule("Adaptive safe GP", "adaptive-safe-gp")
PENALTY = 1.0  # a task beyond the limit counts as e times its energy; see DEVIATIONS.md


def paper_lineup(hyperparameters: dict[str, Hyperparameters] | None = None) -> list[Rule]:
    """The paper's scheduler, its baselines, and the references on either side.

    The baselines come twice, because the paper does not say which it compares to: minimising energy
    alone, and with a penalty beyond the limit.
    """
    fitted = {"hyperparameters": hyperparameters} if hyperparameters else {}
    penalty = {"penalty": PENALTY}
    return [
        Rule("Oracle", "oracle"),
        Rule(OURS, "safe-gp-ucb", fitted),
        Rule("UCB", "ucb"),
        Rule("UCB + penalty", "ucb", penalty),
        Rule("Thompson", "thompson"),
        Rule("Thompson + penalty", "thompson", penalty),
        Rule("Epsilon-greedy", "epsilon-greedy"),
        Rule("Epsilon-greedy + penalty", "epsilon-greedy", penalty),
        Rule("Fixed at full power", "fixed"),
        Rule("Random", "random"),
    ]


def fitted_lineup(device: KnownDevice, task: Task) -> list[Rule]:
    """The paper's line-up with hyperparameters for this device, and the adaptive rule."""
    rules = paper_lineup(transferred(device, task, all_tasks()))
    return [*rules[:2], ADAPTIVE, *rules[2:]]


def task_for(device: Device, encoder: str = "", or_first: bool = False) -> Task:
    """A task for an encoder that the device holds; without a name, for its first.

    With ``or_first`` an unknown name means the first, too; otherwise it raises ValueError.
    """
    held = device.modalities
    if not encoder or (or_first and encoder not in held):
        encoder = next(iter(held))
    if encoder not in held:
        raise ValueError(f"encoder {encoder!r}: {device.name} holds {', '.join(held)}")
    return Task(held[encoder], encoder)


# -- The comparison

SHOWN = [
    *("energy_j", "energy_over_oracle", "latency_s"),
    *("violations", "observed_violations", "regret_j", "switches"),
]


@dataclass(frozen=True)
class Comparison:
    """Runs of several schedulers on the same tasks; ``table`` is of ``run`` or ``sweep``."""

    table: pd.DataFrame
    limits: Mapping[str, float]
    evidence: str

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per scheduler and seed; see ``metrics.per_run``."""
        return metrics.per_run(self.table, self.limits)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Means over seeds with their intervals, long; see ``metrics.summarise``."""
        return metrics.summarise(self.runs)

    def overview(self) -> pd.DataFrame:
        """Means over seeds, one row per scheduler."""
        return self.summary.pivot(index="scheduler", columns="quantity", values="value")[SHOWN]

    @cached_property
    def savings(self) -> pd.DataFrame:
        """How much less safe GP-UCB takes than every other scheduler, paired by seed.

        Columns ``what`` (energy, latency; late: over the second half), ``scheduler``, ``value``,
        ``low``, ``high``, ``n``.
        """
        steps = int(self.table["step"].max()) + 1
        late = metrics.per_run(self.table, self.limits, start=steps // 2)
        parts = {
            "energy": metrics.savings(self.runs, OURS),
            "energy late": metrics.savings(late, OURS),
            "latency": metrics.savings(self.runs, OURS, "latency_s"),
            "latency late": metrics.savings(late, OURS, "latency_s"),
        }
        return pd.concat(parts, names=["what"]).reset_index("what").reset_index(drop=True)

    def claim_numbers(self) -> pd.DataFrame:
        """The numbers that claims refer to, by ``key``: savings, and violations of everyone."""
        saved = self.savings
        saved = saved.assign(key=saved["what"] + " vs " + saved["scheduler"].astype(str))
        shares = self.summary[self.summary["quantity"] == "violations"]
        shares = shares.assign(key="violations of " + shares["scheduler"].astype(str))
        columns = ["key", *metrics.NUMBER]
        numbers = pd.concat([saved[columns], shares[columns]], ignore_index=True)
        return numbers.assign(evidence=self.evidence)


def compare(
    device: str,
    task: Task,
    rules: Sequence[Rule],
    *,
    steps: int,
    seeds: int | Sequence[int],
    limit_s: float,
    trusted: Sequence[Arm],
    device_settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Comparison:
    """Run all rules on a simulated or replayed device; ``options`` are those of ``sweep``.

    Raises ValueError for a live device, which cannot serve several runs at once.
    """
    board = open_device(device, **(device_settings or {}))
    if not isinstance(board, KnownDevice):
        raise ValueError(f"device {device!r} is live: play one scheduler at a time on it")
    limits = {"latency_s": limit_s}
    table = sweep(
        *(rules, device, task, steps, seeds),
        limits=limits,
        trusted=trusted,
        device_settings=device_settings,
        **options,
    )
    return Comparison(table, limits, board.evidence)


def with_numbers_without_cpu(played: Comparison, without: Comparison) -> pd.DataFrame:
    """The numbers of notebook 04's claims: of the comparison, and of that without CPU arms."""
    numbers = without.claim_numbers()
    numbers["key"] = "no CPU arms, " + numbers["key"]
    return pd.concat([played.claim_numbers(), numbers], ignore_index=True)


# -- Stability over cases: power levels, or latency limits
#
# The paper claims it and does not say of what. Here it is the energy over that of the best arm, the
# violations, and the saving against the baselines. ``cases`` maps labels to comparisons.

BASELINES = ("UCB", "Epsilon-greedy")


def trusted_within(device: KnownDevice, task: Task, limit_s: float) -> list[Arm]:
    """Full-power arms of GPU and DLA that meet the limit; both of them if neither does."""
    arms = full_power_arms(device.space)
    return [arm for arm in arms if device.expected(arm, task).latency_s <= limit_s] or arms


def best_arm(device: KnownDevice, task: Task, limit_s: float) -> dict[str, object]:
    """Number of arms, of those within the limit, and the best (or least violating) one's means."""
    means = device.expected_all(task)
    best, met = truly_best(vars(means), "energy_j", {"latency_s": limit_s})
    return {
        "arms": len(device.space),
        "within the limit": int((means.latency_s <= limit_s).sum()),
        "best arm": str(device.space[best]) if met else f"none; {device.space[best]}",
        "latency_s": means.latency_s[best],
        "energy_j": means.energy_j[best],
    }


def by_case(
    cases: Mapping[str, Comparison], table: Callable[[Comparison], pd.DataFrame]
) -> pd.DataFrame:
    """A table of every comparison, one below the other, with a first column ``case``."""
    parts = {label: table(played) for label, played in cases.items()}
    return pd.concat(parts, names=["case"]).reset_index("case").reset_index(drop=True)


def stability_numbers(cases: Mapping[str, Comparison]) -> pd.DataFrame:
    """The numbers that claims refer to; give only cases in which some arm meets the limit.

    ``energy over oracle, worst`` and ``best``, and the ``spread`` between them, paired by seed;
    ``violations, worst``; ``saving vs <baseline>, least``. The interval of a worst case reaches to
    the worst bound of any case.
    """
    if not cases:
        raise ValueError("no arm meets any of the limits; raise one")
    summary = by_case(cases, lambda played: played.summary)
    ours = summary[summary["scheduler"] == OURS].set_index("quantity")
    energy = ours.loc[["energy_over_oracle"]]
    runs = by_case(cases, lambda played: played.runs)
    runs = runs[runs["scheduler"] == OURS]
    wide = runs.pivot(index="seed", columns="case", values="energy_over_oracle")
    means = energy.set_index("case")["value"]
    spread = (wide[means.idxmax()] - wide[means.idxmin()]).to_numpy()
    rows = [
        ("energy over oracle, worst", *metrics.highest(energy)),
        ("energy over oracle, best", *metrics.lowest(energy)),
        ("energy over oracle, spread", *metrics.mean_interval(spread), len(spread)),
        ("violations, worst", *metrics.highest(ours.loc[["violations"]])),
    ]
    saved = by_case(cases, lambda played: metrics.savings(played.runs, OURS))
    for other in BASELINES:
        least = metrics.lowest(saved[saved["scheduler"] == other])
        rows.append((f"saving vs {other}, least", *least))
    return metrics.claim_table(rows, next(iter(cases.values())).evidence)
