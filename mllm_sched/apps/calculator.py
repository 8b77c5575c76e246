"""The calculator of savings, as a widget.

The numbers are those of ``experiments/savings.py``. Nothing is played here: the runs are those that
notebook 10 wrote. An input that makes no sense leaves the last good result as it is.
"""

from __future__ import annotations

import html
import io
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd

from mllm_sched.apps.fields import ABOVE_0, FROM_0, REFUSED, WIDE, NumberField, Wanted, classed
from mllm_sched.experiments import plots
from mllm_sched.experiments.plots import OURS
from mllm_sched.experiments.savings import (
    PlayedRuns,
    SavingsScenario,
    annual,
    bill_figure,
    headline,
    read_runs,
    saved,
    short,
    strategy_annual,
)

# -- What it shows


def bill_table(scenario: SavingsScenario, played: PlayedRuns, ours: str = OURS) -> pd.DataFrame:
    """What the calculator shows of the schedulers: text, the least energy first (simulated)."""
    bill = annual(scenario, played).sort_values("energy_kwh", kind="stable")
    share = saved(scenario, played, ours).set_index("scheduler")["share"]
    rows = [
        {
            "scheduler": row["scheduler"],
            "kWh": short(row["energy_kwh"]),
            "95 %": _range(row, "energy_kwh"),
            "95 % with the model's error": _range(row, "energy_kwh_wide"),
            "euro": short(row["money"]),
            "kg CO2e": short(row["carbon_kg"]),
            "beyond the limit": _percent(row["beyond"]),
            f"saved by {ours}": f"{100 * share[row['scheduler']]:z.1f} %"
            if row["scheduler"] in share
            else "",
        }
        for _, row in bill.iterrows()
    ]
    return pd.DataFrame(rows)


def _range(row: pd.Series, name: str) -> str:
    return f"{short(row[f'{name}_low'])} to {short(row[f'{name}_high'])}"


def _percent(share: float) -> str:
    if 0 < share < 1e-5:  # not said to be none
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
        names = played.curves(encoder, scenario.limit_s).trusted_beyond
        if names:
            told.append(f"{encoder}: trusted at the start, but beyond the limit itself: {names}.")
    return told


def _drawn(bill: pd.DataFrame) -> bytes:
    with plt.rc_context():
        plots.use_style()
        ax = bill_figure(bill)
        figure, buffer = ax.figure, io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")  # type: ignore[union-attr]
        plt.close(figure)  # type: ignore[arg-type]
    return buffer.getvalue()


# -- The widget

WHOLE: Wanted = ("a whole number, 1 or more", lambda value: value >= 1 and value == int(value))
PERCENT: Wanted = ("a number from 0 to 100", lambda value: 0 <= value <= 100)
NUMBERS = {  # field of a scenario: what it is called, what it may be, the ends of its slider
    "tasks_per_day": ("tasks per day, a device", ABOVE_0, (0.1, 1e5)),
    "devices": ("devices", WHOLE, (1, 1e5)),
    "price_per_kwh": ("euro per kWh", FROM_0, (0, 1)),
    "gco2_per_kwh": ("g CO2e per kWh", FROM_0, (0, 1000)),
    "days": ("days", ABOVE_0, (1, 3650)),
}


def calculator(runs: pd.DataFrame | None = None) -> widgets.Widget:
    """The calculator; ``runs`` are of ``savings.play``, by default those that notebook 10 wrote.

    Without runs it is a note that says what to call.
    """
    try:
        return Calculator(PlayedRuns(read_runs() if runs is None else runs))
    except FileNotFoundError as error:
        return classed("calculator-missing", widgets.HTML(html.escape(str(error))))


class Calculator(widgets.Box):
    """Inputs, and the results beside them, or below where the page is narrow.

    ``fields`` are inputs by field of ``SavingsScenario``, ``mix`` those by encoder, in percent;
    ``message`` says why an input was refused.
    """

    def __init__(self, played: PlayedRuns) -> None:
        self.played, start = played, SavingsScenario()
        self.fields = {
            key: NumberField(
                *(name, getattr(start, key), *wanted, ends),
                log=ends[0] > 0,
                whole=wanted is WHOLE,
                css=f"calculator-{key.replace('_', '-')}",
            )
            for key, (name, wanted, ends) in NUMBERS.items()
        }
        shares = {name: round(100 * start.mix.get(name, 0.0), 3) for name in played.encoders}
        self.mix = {
            name: NumberField(name, share, *PERCENT, (0, 100), css=f"calculator-mix-{name}")
            for name, share in shares.items()
        }
        limits, names = played.limits_s, list(played.schedulers)
        self.limit = widgets.SelectionSlider(
            options=[(f"{limit_s:g} s", limit_s) for limit_s in limits],
            value=start.limit_s if start.limit_s in limits else limits[-1],
            description="latency limit",
            style=WIDE,
            layout=widgets.Layout(width="30em"),
        )
        self.ours = widgets.Dropdown(options=names, value=OURS, description="saved by", style=WIDE)
        self.other = widgets.Dropdown(options=names, value="UCB", description="against", style=WIDE)
        self.headline = widgets.HTML(style={"font_size": "1.3em"})
        self.message = widgets.HTML(style={"text_color": REFUSED})
        self.notes, self.table, self.strategies = (widgets.HTML() for _ in range(3))
        self.figure = widgets.Image(format="svg+xml", layout=widgets.Layout(max_width="52em"))
        shown = ("headline", "message", "notes", "table", "strategies", "figure")
        for name in ("limit", "ours", "other", *shown):
            classed(f"calculator-{name}", getattr(self, name))
        mix = [_heading("Mix of tasks, in percent"), *self.mix.values()]
        inputs = [*self.fields.values(), *mix, self.limit, self.ours, self.other]
        simulated = _heading("Schedulers, encoding alone (simulated)")
        estimated = _heading("Strategies, whole requests (estimated)")
        results = [self.headline, self.message, self.notes, simulated, self.table, self.figure]
        results += [estimated, self.strategies]
        wide = widgets.Layout(flex="1 1 45em", min_width="0")
        parts = [widgets.VBox(inputs), widgets.VBox(results, layout=wide)]
        super().__init__(parts, layout=widgets.Layout(flex_flow="row wrap"))
        self.add_class("calculator")
        for each in (*self.fields.values(), *self.mix.values()):
            each.on_change = self.update
        for choice in (self.limit, self.ours, self.other):
            choice.observe(lambda change: self.update(), "value")
        self.update()

    def scenario(self) -> SavingsScenario:
        """What the fields say; ValueError if they make no sense together."""
        numbers: dict[str, Any] = {name: each.value for name, each in self.fields.items()}
        mix = {encoder: each.value for encoder, each in self.mix.items()}
        return SavingsScenario(**numbers, mix=mix, limit_s=self.limit.value)

    def update(self) -> None:
        """Show the result of the fields, or say why there is none and leave the last one."""
        if any(each.error for each in (*self.fields.values(), *self.mix.values())):
            return  # the field says so itself
        try:
            results = self._results()
        except ValueError as error:
            self.message.value = html.escape(f"{error}. Below is the last good result.")
            return
        self.message.value = ""
        for name, value in results.items():
            getattr(self, name).value = value

    def _results(self) -> dict[str, str | bytes]:
        scenario, ours, other = self.scenario(), self.ours.value, self.other.value
        if ours == other:
            raise ValueError(f"{ours} is compared to itself; choose two schedulers")
        notes = remarks(scenario, self.played, ours)
        return {
            "headline": html.escape(headline(scenario, self.played, ours, other)),
            "table": _as_html(bill_table(scenario, self.played, ours)),
            "strategies": _as_html(strategy_table(scenario)),
            "figure": _drawn(annual(scenario, self.played)),
            "notes": "".join(f"<p>{html.escape(line)}</p>" for line in notes),
        }


def _as_html(table: pd.DataFrame) -> str:
    """With headings above what they head, and a bar of its own where the page is too narrow."""
    shown = table.to_html(index=False, border=0)
    shown = shown.replace("<th>", '<th style="text-align:left;padding-right:1em">')
    return f'<div style="overflow-x:auto">{shown}</div>'


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f"<b>{html.escape(text)}</b>")
