"""What the calculator shows, as plain tables and sentences; it needs no widgets."""

from __future__ import annotations

import pandas as pd

from mllm_sched.experiments.plots import OURS
from mllm_sched.experiments.savings import annual, saved, strategy_annual
from mllm_sched.experiments.savings_plots import short
from mllm_sched.experiments.savings_runs import PlayedRuns, SavingsScenario


def bill_table(scenario: SavingsScenario, played: PlayedRuns, ours: str = OURS) -> pd.DataFrame:
    """What the calculator shows of the schedulers: text, the least energy first (simulated)."""
    bill = annual(scenario, played).set_index("scheduler")
    share = saved(scenario, played, ours).set_index("scheduler")["share"]
    rows = {
        name: {
            "kWh": short(row["energy_kwh"]),
            "95 %": _range(row, "energy_kwh"),
            "95 % with the model's error": _range(row, "energy_kwh_wide"),
            "euro": short(row["money"]),
            "kg CO2e": short(row["carbon_kg"]),
            "beyond the limit": _percent(row["beyond"]),
            f"saved by {ours}": f"{100 * share[name]:z.1f} %" if name in share else "",
        }
        for name, row in bill.sort_values("energy_kwh", kind="stable").iterrows()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scheduler").reset_index()


def _range(row: pd.Series, name: str) -> str:
    return f"{short(row[f'{name}_low'])} to {short(row[f'{name}_high'])}"


def _percent(share: float) -> str:
    """Three decimals; a share too small for them is not said to be none.

    >>> _percent(0.0), _percent(1e-7), _percent(0.0684)
    ('0 %', 'below 0.001 %', '6.840 %')
    """
    if 0 < share < 1e-5:
        return "below 0.001 %"
    return f"{100 * share:.3f} %" if share else "0 %"


def strategy_table(scenario: SavingsScenario) -> pd.DataFrame:
    """What the calculator shows of the strategies: text (estimated)."""
    rows = [
        {
            "strategy": row.strategy,
            "kWh": short(row.energy_kwh),
            "range of the assumptions": f"{short(row.low_kwh)} to {short(row.high_kwh)}",
            "euro": short(row.money),
            "kg CO2e": short(row.carbon_kg),
        }
        for row in strategy_annual(scenario).itertuples()
    ]
    return pd.DataFrame(rows)


def remarks(scenario: SavingsScenario, played: PlayedRuns, ours: str = OURS) -> list[str]:
    """What must be said beside the bill: idle power, and trusted arms beyond the limit."""
    row = annual(scenario, played).set_index("scheduler").loc[ours]
    told = [
        f"Between tasks the modules draw {short(row['idle_kwh'])} kWh if they stay on (simulated "
        "idle power), "
        f"{short(row['idle_kwh'] / row['energy_kwh'])} times what the tasks take. No scheduler is "
        "asked to save that."
    ]
    for encoder in scenario.mix:
        names = played.trusted_beyond(encoder, scenario.limit_s)
        if names:
            told.append(f"{encoder}: trusted at the start, but beyond the limit itself: {names}.")
    return told
