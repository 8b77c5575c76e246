"""Which rules are compared on random tables, and what is switched off or turned in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mllm_sched.schedulers import Hyperparameters
from mllm_sched.study.lineup import ADAPTIVE, PENALTY, SAFE
from mllm_sched.study.runner import Rule
from mllm_sched.study.table_runs import Trial, each

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

FAMILIES = (("roofline", 48), ("rough", 48), ("queueing", 48), ("board", 60), ("published", 120))
KEPT_APART = FAMILIES[2:]  # while the adaptive rule was developed; the board only at first


def frontier_trials() -> list[Trial]:
    """Every rule on every family, as it is and with drift, at little noise."""
    return [
        Trial(rule, family, arms, drift=drift)
        for family, arms in FAMILIES
        for drift in (False, True)
        for rule in FIELD
    ]


def _with(**settings: Any) -> dict[str, Any]:
    return {"rule": Rule(ADAPTIVE.label, ADAPTIVE.name, settings)}


def _safe_with(**settings: Any) -> dict[str, Any]:
    return {"rule": Rule(SAFE.label, SAFE.name, settings)}


def _lengths(correlation: float, length_scale: float) -> dict[str, Hyperparameters]:
    """A kernel for three factors: components correlate so, power and load reach so far."""
    values = Hyperparameters(1.0, 0.05**2, (correlation, length_scale, length_scale))
    return {"energy_j": values, "latency_s": values}


PARTS = {  # of the adaptive rule
    "kernel not learned": _with(learn_kernel=False),
    "energy modelled, not power": _with(model_power=False),
    "change not noticed": _with(notice_change=False),
    "no budget of risk": _with(violation_rate=0.0),
    "budget 0.1 %": _with(violation_rate=0.001),
    "budget 2 %": _with(violation_rate=0.02),
    "certain to 95 %": _with(certainty=0.95),
    "certain to 99.95 %": _with(certainty=0.9995),
    "horizon 100": _with(horizon=100),
    "horizon 2000": _with(horizon=2000),
    "one trusted arm": {"seeds": 1},
}

CHOICES = {  # of the paper's rule, which leaves them open
    "beta 1": _safe_with(beta=1.0),
    "beta 9": _safe_with(beta=9.0),
    "outcomes, not their logs": {"raw": True},
    "one trusted arm": {"seeds": 1},
    "length-scale 0.2": _safe_with(hyperparameters=_lengths(0.5, 0.2)),
    "length-scale 2": _safe_with(hyperparameters=_lengths(0.5, 2.0)),
    "components alike": _safe_with(hyperparameters=_lengths(0.95, 1.0)),
    "forgets 0.0005 a task": _safe_with(forget_rate=0.0005),
    "forgets 0.002 a task": _safe_with(forget_rate=0.002),
    "forgets 0.01 a task": _safe_with(forget_rate=0.01),
}

WORLDS = {  # in which both are put
    "noise 1 %": {"noise": 0.01},
    "noise 15 %": {"noise": 0.15},
    "noise 50 %": {"noise": 0.5},
    "heavy tails, 15 %": {"noise": 0.15, "heavy": True},
    "100 tasks": {"tasks": 100},
    "2000 tasks": {"tasks": 2000},
}


def ablation_trials(
    rule: Rule,
    variants: Mapping[str, Mapping[str, Any]],
    families: Iterable[tuple[str, int]] = KEPT_APART,
) -> list[Trial]:
    """A rule and its variants on some families, as it is and with drift."""
    cases = [
        {"family": family, "arms": arms, "drift": drift}
        for family, arms in families
        for drift in (False, True)
    ]
    base = Trial(rule, "board", 60)
    return each(base, variants, cases)
