"""Stability of a scheduler's performance over power levels, or over latency limits.

The paper claims it and does not say of what. Here it is the energy over that of the best arm, the
tasks beyond the limit, and the saving against the baselines. A case is one power level, or one
limit; ``cases`` maps its label to the comparison there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator, PercentFormatter

from mllm_sched.arms import Arm
from mllm_sched.devices import KnownDevice
from mllm_sched.experiments import metrics
from mllm_sched.experiments.comparison import Comparison
from mllm_sched.experiments.lineup import OURS, full_power_arms
from mllm_sched.experiments.plots import PENALTY, dashes, scheduler_colour, titled
from mllm_sched.schedulers.references import truly_best
from mllm_sched.tasks import Task

BASELINES = ("UCB", "Epsilon-greedy")


def trusted_within(device: KnownDevice, task: Task, limit_s: float) -> list[Arm]:
    """Full-power arms of GPU and DLA that meet the limit; both of them if neither does."""
    arms = full_power_arms(device.space)
    return [arm for arm in arms if device.expected(arm, task).latency_s <= limit_s] or arms


def best_arm(device: KnownDevice, task: Task, limit_s: float) -> dict[str, object]:
    """Number of arms, of those within the limit, and the best arm with its true means.

    Where no arm meets the limit, the best is the one least beyond it.
    """
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


def claim_numbers(cases: Mapping[str, Comparison]) -> pd.DataFrame:
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
    wide = runs[runs["scheduler"] == OURS].pivot(
        index="seed", columns="case", values="energy_over_oracle"
    )
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


def over_cases(summary: pd.DataFrame, *, xlabel: str, title: str, evidence: str) -> Sequence[Axes]:
    """Energy, violations and latency over the cases, one line a scheduler with its interval.

    ``summary`` is ``by_case`` of every comparison's. Rules with a penalty are left out: where they
    differ at all, the tables say so.
    """
    axes = plt.subplots(1, 3, figsize=(13.5, 4.2))[1]
    labels = list(summary["case"].unique())
    places = np.arange(len(labels))
    short = [label.removesuffix(" s") for label in labels]  # the unit stands with the axis
    for ax, (quantity, ylabel, name) in zip(axes, PANELS, strict=True):
        rows = summary[summary["quantity"] == quantity]
        for scheduler, line in rows.groupby("scheduler", observed=True, sort=False):
            label = str(scheduler)
            if PENALTY in label:
                continue
            colour, ours = scheduler_colour(label), label == OURS
            looks = {"lw": 2.6 if ours else 1.5, "zorder": 3 if ours else 2}
            ax.plot(
                *(places, line["value"], dashes(label)),
                **(looks | {"marker": "o", "ms": 5, "color": colour, "label": label}),
            )
            ax.fill_between(places, line["low"], line["high"], color=colour, alpha=0.18, lw=0)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.3, len(labels) - 0.7))
        ax.set_xticks(places, short, rotation=60 if len(labels) > 6 else 0)
        titled(ax, f"{title}: {name}", evidence)
    energy, share, latency = axes
    energy.set_yscale("log")
    energy.yaxis.set_major_locator(FixedLocator((1, 1.5, 2, 3, 5, 10, 20, 50)))
    energy.yaxis.set_major_formatter(FormatStrFormatter("%gx"))
    energy.yaxis.set_minor_locator(NullLocator())
    share.set_yscale("symlog", linthresh=0.01)
    share.set_ylim(-0.001, 1.2)
    share.yaxis.set_major_formatter(PercentFormatter(1.0))
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    latency.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axes


PANELS = [
    ("energy_over_oracle", "energy over the oracle's", "energy"),
    ("violations", "tasks beyond the limit", "violations"),
    ("latency_s", "mean latency, s", "latency"),
]
